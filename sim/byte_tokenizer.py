"""A tokenizer with one token per byte, for models that are made on the spot."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_byte_tokenizer(
    folder: Path, special: Mapping[int, str], *, end: str, chat_template: str | None
) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`. Tokens 0 to 255 are the bytes; `special`
    are tokens of more than one character above them, of which `end` ends an answer."""
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(special)))
    config = {"eos_token": end}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _tokenizer(special: Mapping[int, str]) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": content, "special": True, **flags}
            for token_id, content in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(_byte_characters())},
            "merges": [],
        },
    }


def _byte_characters() -> list[str]:
    """How byte-level tokenizers write each byte: printable ones as they are, others from U+0100.
    Not taken from the node's own table, which models with this tokenizer test."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
