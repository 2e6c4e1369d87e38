"""How each layer of a model attends: its scale, how far back it sees, whether its scores are bent.

Kernels read these; what a model's config says becomes them in `capanode.engines.families`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerRule:
    """`scale` multiplies the products of queries and keys. With `window_tokens` a token sees itself
    and the `window_tokens - 1` before it (Mistral, Gemma, Qwen). With `softcap` a score s becomes
    softcap * tanh(s / softcap) before masks and softmax (Gemma 2)."""

    scale: float
    window_tokens: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class AttentionRules:
    """`heads` are the query heads; one rule for each layer."""

    heads: int
    layers: Sequence[LayerRule]

    @property
    def windows(self) -> frozenset[int | None]:
        """Every window that some layer has."""
        return frozenset(rule.window_tokens for rule in self.layers)
