"""How much memory a model needs for a context, from its configuration. Pure.

A token that is kept costs a key and a value of `kv_heads` x `head_dim` numbers in every layer;
layers with a sliding window keep no more tokens than the window has.
"""

from dataclasses import dataclass

# Keys and values are kept in 16 bits, whatever the weights are.
_CACHE_NUMBER_BYTES = 2
# Program, libraries, a CUDA context, and what a step computes in between.
WORKSPACE_BYTES = 1_500_000_000
_STEP_TOKENS = 1_024


@dataclass(frozen=True, slots=True)
class CacheGeometry:
    """What decides the size of the cache. Of `layers`, `window_layers` look back only
    `window_tokens`; all zero for a model that keeps nothing."""

    layers: int
    kv_heads: int
    head_dim: int
    window_layers: int = 0
    window_tokens: int = 0

    @property
    def layer_token_bytes(self) -> int:
        """One token in one layer: a key and a value."""
        return 2 * self.kv_heads * self.head_dim * _CACHE_NUMBER_BYTES


NO_CACHE = CacheGeometry(0, 0, 0)


def cache_bytes(geometry: CacheGeometry, context_tokens: int) -> int:
    """Of one job with `context_tokens` in it."""
    full = (geometry.layers - geometry.window_layers) * context_tokens
    windows = geometry.window_layers * min(context_tokens, geometry.window_tokens)
    return geometry.layer_token_bytes * (full + windows)


def memory_need(weight_bytes: int, geometry: CacheGeometry, context_tokens: int) -> int:
    """Of a model with one job at full context; jobs that run together share the cache."""
    return weight_bytes + cache_bytes(geometry, context_tokens) + WORKSPACE_BYTES


def largest_context(
    weight_bytes: int, geometry: CacheGeometry, *, context_tokens: int, memory_bytes: int
) -> int:
    """The most tokens, of at most `context_tokens`, that fit; 0 if the weights alone do not."""
    if memory_need(weight_bytes, geometry, 0) > memory_bytes:
        return 0
    low, high = 0, context_tokens
    while low < high:
        middle = (low + high + 1) // 2
        if memory_need(weight_bytes, geometry, middle) <= memory_bytes:
            low = middle
        else:
            high = middle - 1
    return low if low == context_tokens else low // _STEP_TOKENS * _STEP_TOKENS
