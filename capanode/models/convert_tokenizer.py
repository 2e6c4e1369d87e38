"""The tokenizer in a GGUF file's metadata, as the files that `tokenizers` and transformers read.

The JSON is written by hand and not by `tokenizers`, whose output changes between its versions.
"""

from typing import Any

_CONTROL = 3
_USER_DEFINED = 4

# What splits text before byte-pair merges, by llama.cpp's name for it (llama-vocab.cpp). Only what
# was compared with the original tokenizer is listed: a wrong split is wrong output, silently.
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_SPLITTERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
}


def tokenizer_files(metadata: dict[str, Any]) -> dict[str, Any]:
    """What goes into tokenizer.json and tokenizer_config.json. Raises ValueError if unsupported."""
    model = metadata.get("tokenizer.ggml.model")
    splitter = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2" or splitter not in _SPLITTERS:
        raise ValueError(f"tokenizer {model!r} with splitter {splitter!r} is not supported")
    if metadata.get("tokenizer.ggml.add_bos_token", False):
        raise ValueError("tokenizers that add a token in front of every text are not supported")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    added = _added_tokens(tokens, metadata["tokenizer.ggml.token_type"])
    merges = [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]]
    return {
        "tokenizer.json": _tokenizer(tokens, added, merges, _SPLITTERS[splitter]),
        "tokenizer_config.json": _tokenizer_config(metadata, tokens, added),
    }


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "id": token_id,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for token_id, (content, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _tokenizer(
    tokens: list[str],
    added: list[dict[str, Any]],
    merges: list[list[str]],
    splitter: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitter},
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {content: token_id for token_id, content in enumerate(tokens)},
            "merges": merges,
        },
    }


def _tokenizer_config(
    metadata: dict[str, Any], tokens: list[str], added: list[dict[str, Any]]
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "additional_special_tokens": [],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            config[f"{role}_token"] = tokens[token_id]
    config["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in added
    }
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config
