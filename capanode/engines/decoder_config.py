"""What `capanode.engines.decoder` needs to know of a model, whatever its family calls it.

`capanode.engines.families` reads it from config.json. It needs no torch, so that the store can
refuse a model before it is kept.
"""

from dataclasses import dataclass
from enum import StrEnum

from capanode.engines.attention_rules import AttentionRules


class Activation(StrEnum):
    """Of the gate in the MLP, by its name in config.json."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All frequencies are divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Low frequencies are divided by `factor`, high ones are kept, those between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_tokens: int


@dataclass(frozen=True, slots=True)
class LongScaling:
    """LongRoPE: each frequency is divided by a factor of its own, of two lists. A model that is
    loaded with no more than its original context takes the short ones, else the long ones; cosines
    and sines are multiplied by `attention_factor`."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_context_tokens: int
    attention_factor: float


@dataclass(frozen=True, slots=True)
class Rope:
    """One rotation of queries and keys: of the first `channels` of each head."""

    theta: float
    channels: int
    scaling: LinearScaling | Llama3Scaling | LongScaling | None = None


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The defaults are Llama's. `layer_ropes` has an entry for each layer."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens: int
    norm_eps: float
    ties_embeddings: bool
    dtype_name: str  # "float32", "bfloat16" or "float16"
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int | None, ...]  # which of `ropes`; None: not rotated
    attention: AttentionRules
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    activation: Activation = Activation.SILU
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_mlp_bias: bool = False
    # The files hold query, key and value weights as one matrix, and gate and up as another.
    has_fused_weights: bool = False
    # Queries and keys are normed head by head.
    has_head_norms: bool = False
    # What attention and MLP give is normed before it is added, and not only what they are given.
    has_output_norms: bool = False
    # A norm's weight is stored less one, and applied in float32.
    has_offset_norms: bool = False

    @property
    def matrix_values(self) -> int:
        """How many numbers the layers' matrices hold."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * self.hidden_size * (attention + 3 * self.intermediate_size)
