"""How the states of a text's tokens become one vector, as sentence-transformers' files say it."""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capanode.engines.base import ModelLoadError
from capanode.engines.encoders.text_batch import TextBatch
from capanode.engines.weights import read_optional_json, read_optional_objects

# What a model may do with its vectors that we do too: jobs say themselves if they want unit length.
_MODULES = {"Transformer", "Pooling", "Normalize"}


class Pooling(Enum):
    """By the words of a pooling module's config."""

    MEAN = "mean"
    FIRST = "cls"
    LAST = "lasttoken"
    MAX = "max"


_OLD_KEYS = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_cls_token": Pooling.FIRST,
    "pooling_mode_lasttoken": Pooling.LAST,
    "pooling_mode_max_tokens": Pooling.MAX,
}


def pool(states: Tensor, batch: TextBatch, pooling: Pooling) -> Tensor:
    """One vector per text, [texts, dimensions], from the states [rows, dimensions]."""
    ends = batch.lengths.cumsum(0)
    if pooling is Pooling.LAST:
        return states[ends - 1]
    if pooling is Pooling.FIRST:
        return states[ends - batch.lengths]
    reduction = "mean" if pooling is Pooling.MEAN else "max"
    return torch.segment_reduce(states[: batch.count], reduction, lengths=batch.lengths)


def read_pooling(model_dir: Path) -> Pooling:
    """Raises ModelLoadError if the model does with its vectors what is not done here."""
    for module in read_optional_objects(model_dir / "modules.json"):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in _MODULES:
            raise ModelLoadError(f"modules.json: {kind[:64]!r} is not run here")
    return _pooling(read_optional_json(model_dir / "1_Pooling" / "config.json"))


def _pooling(plain: Mapping[str, Any]) -> Pooling:
    """Raises ModelLoadError."""
    mode = plain.get("pooling_mode")
    if mode is not None:
        for pooling in Pooling:
            if mode == pooling.value:
                return pooling
        raise ModelLoadError(f"pooling by {str(mode)[:64]!r} is not run here")
    asked = {
        key for key, value in plain.items() if key.startswith("pooling_mode_") and value is True
    }
    if not asked:
        return Pooling.MEAN
    if len(asked) == 1 and asked <= _OLD_KEYS.keys():
        return _OLD_KEYS[asked.pop()]
    raise ModelLoadError(f"pooling by {sorted(asked)} is not run here")
