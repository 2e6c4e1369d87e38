"""The tokenizer in a GGUF file's metadata, as the files that `tokenizers` and transformers read.

The JSON is written by hand and not by `tokenizers`, whose output changes between its versions.
"""

from dataclasses import dataclass
from typing import Any

from capanode.models.gguf_fields import GgufFields
from capanode.models.gguf_sentencepiece import sentencepiece_tokenizer

_UNKNOWN = 2
_CONTROL = 3
_USER_DEFINED = 4

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


@dataclass(frozen=True, slots=True)
class _Splitter:
    """What happens to a text before byte-pair merges."""

    steps: tuple[dict[str, Any], ...]
    normalizer: dict[str, str] | None = None
    # Words that are one token are not built from merges.
    ignores_merges: bool = False


def _by_pattern(pattern: str) -> tuple[dict[str, Any], ...]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return split, {**_BYTE_LEVEL, "use_regex": False}


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# By llama.cpp's name for it (llama-vocab.cpp). Only what was compared with the original tokenizer
# is listed: a wrong split is wrong output, silently.
_SPLITTERS = {
    "gpt-2": _Splitter((_BYTE_LEVEL,)),
    "llama-bpe": _Splitter(
        _by_pattern(
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_WORDS_AND_SPACES}"
        ),
        ignores_merges=True,
    ),
    "qwen2": _Splitter(
        _by_pattern(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_WORDS_AND_SPACES}"),
        normalizer={"type": "NFC"},
    ),
    "smollm": _Splitter(({"type": "Digits", "individual_digits": True}, _BYTE_LEVEL)),
}


def tokenizer_files(fields: GgufFields) -> dict[str, Any]:
    """What goes into tokenizer.json and tokenizer_config.json. Raises ValueError if unsupported."""
    metadata = fields.metadata
    # llama.cpp calls SentencePiece's pairs by the name of their first user.
    is_sentencepiece = metadata.get("tokenizer.ggml.model") == "llama"
    special = {_CONTROL, _UNKNOWN} if is_sentencepiece else {_CONTROL}
    added = _added_tokens(fields.tokens, metadata["tokenizer.ggml.token_type"], special)
    adds_first = metadata.get("tokenizer.ggml.add_bos_token", is_sentencepiece)
    first = fields.token("bos") if adds_first else None
    if metadata.get("tokenizer.ggml.add_eos_token"):
        raise ValueError("tokenizers that add a token after every text are not supported")
    if is_sentencepiece:
        tokenizer = sentencepiece_tokenizer(fields, added)
    else:
        tokenizer = _tokenizer(fields, added)
    tokenizer["post_processor"] = (
        None if first is None else _first_token(fields.tokens[first], first)
    )
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _tokenizer_config(fields, added),
    }


def _added_tokens(tokens: list[str], types: list[int], special: set[int]) -> list[dict[str, Any]]:
    if not all(isinstance(token, str) for token in tokens) or len(set(tokens)) < len(tokens):
        raise ValueError("the tokens of the GGUF file are not different texts")
    return [
        {
            "id": token_id,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind in special,
        }
        for token_id, (content, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in {*special, _USER_DEFINED}
    ]


def _first_token(content: str, token_id: int) -> dict[str, Any]:
    """Sets a token in front of every text that asks for special tokens."""
    special = {"SpecialToken": {"id": content, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {content: {"id": content, "ids": [token_id], "tokens": [content]}},
    }


def _tokenizer(fields: GgufFields, added: list[dict[str, Any]]) -> dict[str, Any]:
    metadata = fields.metadata
    model, name = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    splitter = _SPLITTERS.get(name) if model == "gpt2" else None
    if splitter is None:
        raise ValueError(f"tokenizer {model!r} with splitter {name!r} is not supported")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": splitter.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(splitter.steps)},
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": splitter.ignores_merges,
            "vocab": {content: token_id for token_id, content in enumerate(fields.tokens)},
            "merges": [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(fields: GgufFields, added: list[dict[str, Any]]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "additional_special_tokens": [],
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields.natural("context_length"),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = fields.token(key)
        if token_id is not None:
            config[f"{role}_token"] = fields.tokens[token_id]
    config["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in added
    }
    if template := fields.metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config
