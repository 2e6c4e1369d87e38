"""A model folder for vLLM's stand-in, and the engine on it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from capanode.engines.vllm_lm import VllmLM
from tests.capanode.engines.tiny_models import LLAMA, write_tokenizer

STAND_IN = Path(__file__).parents[1] / "stand_ins" / "vllm"


def write_model(folder: Path, behaviour: dict[str, Any] | None = None, **changes: Any) -> Path:
    """No weights: the stand-in reads none."""
    plain = {**LLAMA, "max_position_embeddings": 128, **changes}
    (folder / "config.json").write_text(json.dumps(plain))
    (folder / "stand_in.json").write_text(json.dumps(behaviour or {}))
    write_tokenizer(folder)
    return folder


@contextmanager
def stand_in_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`import vllm` finds it, and what our engine sets in the environment is gone afterwards."""
    monkeypatch.syspath_prepend(STAND_IN.parent)
    with patch.dict(os.environ):
        yield


def load(folder: Path, *, slots: int = 4) -> VllmLM:
    return VllmLM.load(folder, slots=slots, threads=1)
