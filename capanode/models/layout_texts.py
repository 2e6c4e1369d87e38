"""Checks the texts of a model (configurations, tokenizer, chat template) when it is pulled.

Runs only in the converter process. What a tokenizer or a template does is the sandbox's affair; a
file that no parser takes should be refused before the model is served, not at its first start.
"""

import json
from collections.abc import Iterable
from pathlib import Path

# The largest tokenizer.json in the field is about 35 MB, the longest chat template 30 kB.
_JSON_BYTES_MAX = 64 * 1024 * 1024
_TEMPLATE_BYTES_MAX = 1024 * 1024


def check_texts(files: Iterable[Path]) -> None:
    """Raises ValueError (with a sentence for the user) if one of them is not what its name says."""
    for file in files:
        if file.suffix == ".json":
            _check_json(file)
        elif file.suffix == ".jinja":
            _check_template(file)


def _check_json(file: Path) -> None:
    if file.stat().st_size > _JSON_BYTES_MAX:
        raise ValueError(f"{file.name} is too large")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is not JSON: {error}") from None
    if not isinstance(content, dict | list):
        raise ValueError(f"{file.name} is neither a JSON object nor a list")


def _check_template(file: Path) -> None:
    if file.stat().st_size > _TEMPLATE_BYTES_MAX:
        raise ValueError(f"{file.name} is too large for a chat template")
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not text: {error}") from None
