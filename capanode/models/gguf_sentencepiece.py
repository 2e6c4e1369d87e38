"""A SentencePiece vocabulary in a GGUF file's metadata, as a tokenizer.json of merges.

SentencePiece joins the two neighbours whose piece has the highest score. As merges that is: every
way to put a piece together of two others, the pieces of higher scores first.
"""

from typing import Any

from capanode.models.gguf_fields import GgufFields

_NORMAL = 1
_SPACE = "▁"

# Phi-3's tokenizer takes the space behind its marks for a part of them, but not behind these. Its
# files do not say so (llama.cpp does: llama-vocab.cpp).
_KEEPS_SPACE_BEHIND = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def sentencepiece_tokenizer(fields: GgufFields, added: list[dict[str, Any]]) -> dict[str, Any]:
    """tokenizer.json without what goes in front of every text. Raises ValueError."""
    unknown = fields.token("unknown")
    if fields.architecture == "phi3":
        added = [{**one, "rstrip": one["content"] not in _KEEPS_SPACE_BEHIND} for one in added]
    is_prefixed = bool(fields.metadata.get("tokenizer.ggml.add_space_prefix", True))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(is_prefixed=is_prefixed),
        "pre_tokenizer": None,
        "decoder": _decoder(is_prefixed=is_prefixed),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else fields.tokens[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {content: token_id for token_id, content in enumerate(fields.tokens)},
            "merges": _merges(fields),
        },
    }


def _merges(fields: GgufFields) -> list[list[str]]:
    tokens, scores = fields.tokens, fields.metadata.get("tokenizer.ggml.scores")
    types = fields.metadata["tokenizer.ggml.token_type"]
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ValueError("the GGUF file has no score for each of its tokens")
    normal = {token: at for at, token in enumerate(tokens) if types[at] == _NORMAL}
    found = [
        (-scores[at], at, cut)
        for token, at in normal.items()
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    return [[tokens[at][:cut], tokens[at][cut:]] for _, at, cut in sorted(found)]


def _normalizer(*, is_prefixed: bool) -> dict[str, Any]:
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if not is_prefixed:
        return spaces
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, spaces]}


def _decoder(*, is_prefixed: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if is_prefixed:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
