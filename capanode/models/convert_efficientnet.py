"""The EfficientNet-Lite0 checkpoint (a pickle) to safetensors, with labels and image preparation.

Runs only in the converter process, which is the one place where torch reads a pickle, and only with
`weights_only=True`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from capanode.models.safetensors_file import Tensor, write_safetensors

# The checkpoint has 5 million parameters; the bound is for a file that is not the checkpoint.
_CHECKPOINT_BYTES_MAX = 64 * 1024 * 1024

# From the reference implementation (efficientnet_lite_builder.py in tensorflow/tpu). Pixels are 0
# to 255; the whole centre square is used, as TensorFlow Lite's classifier does with this model.
_CONFIG: dict[str, Any] = {
    "architectures": ["EfficientNetLite"],
    "batch_norm_eps": 0.001,
    "blocks": [
        # repeats, kernel, stride, expansion, input channels, output channels
        [1, 3, 1, 1, 32, 16],
        [2, 3, 2, 6, 16, 24],
        [2, 5, 2, 6, 24, 40],
        [3, 3, 2, 6, 40, 80],
        [3, 5, 1, 6, 80, 112],
        [4, 5, 2, 6, 112, 192],
        [1, 3, 1, 6, 192, 320],
    ],
    "crop_fraction": 1.0,
    "head_channels": 1280,
    "hidden_act": "relu6",
    "image_mean": 127.0,
    "image_size": 224,
    "image_std": 128.0,
    "model_type": "efficientnet_lite",
    "resample": "bicubic",
    "stem_channels": 32,
    "torch_dtype": "float32",
}


def convert_efficientnet(
    source: Path, target: Path, *, on_bytes: Callable[[int, int], None]
) -> dict[str, Any]:
    """Convert `checkpoint.pth` and `labels.json` in `source`; returns what the manifest says.

    Raises ValueError (with a sentence for the user) if a file is damaged or not supported.
    """
    weights = _load_checkpoint(source / "checkpoint.pth")
    labels = json.loads((source / "labels.json").read_text(encoding="utf-8"))
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError("labels.json is not a list of names")
    if "fc.bias" not in weights or weights["fc.bias"].shape != (len(labels),):
        raise ValueError(f"the checkpoint does not tell {len(labels)} classes apart")
    tensors = [
        Tensor(name, "F32", tuple(tensor.shape), tensor.contiguous().numpy)
        for name, tensor in weights.items()
    ]
    write_safetensors(target / "model.safetensors", tensors, on_bytes=on_bytes)
    config = {**_CONFIG, "num_classes": len(labels)}
    for name, content in (("config.json", config), ("labels.json", labels)):
        text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True)
        (target / name).write_text(text + "\n", encoding="utf-8")
    return {
        "task": "image_classification",
        "architecture": "EfficientNetLite",
        "dtype": "fp32",
        "quantization": "fp32",
        "context_tokens": 0,
        "licence": "apache-2.0",
    }


def _load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The float32 tensors by name, without the underscores that the original attributes begin with
    and without counters that only training reads."""
    if path.stat().st_size > _CHECKPOINT_BYTES_MAX:
        raise ValueError("the checkpoint is larger than this architecture can be")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("the checkpoint is not a table of tensors")
    weights = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError("the checkpoint is not a table of tensors")
        if name.endswith(".num_batches_tracked"):
            continue
        if tensor.dtype != torch.float32:
            raise ValueError(f"tensor {name[:64]!r} is not float32")
        weights[".".join(part.removeprefix("_") for part in name.split("."))] = tensor
    return weights
