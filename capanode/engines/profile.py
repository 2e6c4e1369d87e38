"""What computed an answer, as a receipt states it: all that decides the last bits of a result.

Two answers with one profile, input and seed should be equal; a later check of a result takes the
profile's own noise into account, and a check by another profile a wider one.
"""

from dataclasses import dataclass

import torch

from protocol.limits import NAME_CHARS_MAX

# Bumped when a change of ours can change an answer's bits.
LLAMA = "llama/2"
BERT = "bert/2"
MODERN_BERT = "modernbert/1"
QWEN3_ENCODER = "qwen3-encoder/1"
EFFICIENTNET = "efficientnet/1"
TENSOR = "tensor/1"

# How the next token is drawn: see `capanode.engines.sampling`.
SAMPLER = "gumbel-1"

DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class Profile:
    """`kv` and `sampler` are empty where an engine has none."""

    engine: str
    weights: str
    compute: str
    device: str
    kv: str = ""
    sampler: str = ""

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "kv": self.kv,
            "compute": self.compute,
            "device": self.device,
            "sampler": self.sampler,
        }
        stated = [f"{name}={value}" for name, value in parts.items() if value]
        return " ".join((self.engine, f"torch/{torch.__version__}", *stated))[:NAME_CHARS_MAX]


def device_class(device: torch.device) -> str:
    """What decides which kernels run: the processor's vector extension, or the GPU's generation."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda-sm{major}{minor}"
    return f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}"


def decoder_profile(
    weights: str, compute: torch.dtype, *, kv: torch.dtype, device: torch.device
) -> Profile:
    """`weights` says how many bits they carry, and whether products read those bits."""
    return Profile(
        engine=LLAMA,
        weights=weights,
        kv=DTYPE_NAMES[kv],
        compute=DTYPE_NAMES[compute],
        device=device_class(device),
        sampler=SAMPLER,
    )
