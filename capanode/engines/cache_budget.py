"""How many rows and how much context a cache gets, and how many tokens in all of them together."""

import dataclasses

import torch

from capanode.engines.attention import LENGTH_STEP
from capanode.engines.base import ModelLoadError
from capanode.engines.decoder_config import DecoderConfig
from capanode.engines.kv_cache import CacheShape
from capanode.engines.paged_cache import PAGE_TOKENS

# Keys and values of all jobs in main memory. With torch (230 MB), SmolLM2's weights (330 MB) and
# tokenizer (50 MB) it keeps a worker under 1.2 GB, and holds 17,000 tokens of that model.
CACHE_BYTES = 384 * 1024 * 1024
CONTEXT_TOKENS_MAX = 4096

# Each slot has addresses for a full context; the sandbox allows 6 GiB of them for everything.
_ADDRESS_BYTES_MAX = 3 * 1024**3

# Of a GPU's memory, after the weights. The rest is for what a step computes in between.
_GPU_CACHE_SHARE = 0.8


@dataclasses.dataclass(frozen=True, slots=True)
class CacheBudget:
    """`tokens` may be fewer than all rows at full length: on a CPU only filling them costs. Where
    jobs share a pool of pages, `pages` is how many it has, else 0."""

    shape: CacheShape
    tokens: int
    pages: int = 0


def cache_budget(
    config: DecoderConfig,
    dtype: torch.dtype,
    slots: int,
    device: torch.device,
    *,
    context_tokens: int | None = None,
    cache_bytes: int | None = None,
) -> CacheBudget:
    """What memory and addresses allow. Raises ModelLoadError if that is not even one step of
    attention."""
    if device.type == "cpu":
        return _rows_budget(
            config,
            dtype,
            slots,
            context_tokens=context_tokens or CONTEXT_TOKENS_MAX,
            filled_bytes=cache_bytes or CACHE_BYTES,
        )
    cache_bytes = cache_bytes or _free_gpu_bytes(config, dtype, device)
    return paged_budget(config, dtype, slots, context_tokens, cache_bytes)


def paged_budget(
    config: DecoderConfig,
    dtype: torch.dtype,
    slots: int,
    context_tokens: int | None,
    cache_bytes: int,
) -> CacheBudget:
    """One pool for all jobs: a context may take as much of it as there is. A page is for padding.
    Raises ModelLoadError if no other is left."""
    token = CacheShape(config.layers, slots + 1, config.kv_heads, 1, config.head_dim, dtype)
    pages = cache_bytes // (token.token_bytes * PAGE_TOKENS)
    if pages < 2:
        raise ModelLoadError(f"{cache_bytes} bytes of cache are too few for a page of tokens")
    tokens = (pages - 1) * PAGE_TOKENS
    context = min(config.context_tokens, context_tokens or config.context_tokens, tokens)
    return CacheBudget(dataclasses.replace(token, context_tokens=context), tokens, pages)


def _rows_budget(
    config: DecoderConfig,
    dtype: torch.dtype,
    slots: int,
    *,
    context_tokens: int,
    filled_bytes: int,
) -> CacheBudget:
    """Rows for all slots and one for padding."""
    rows = slots + 1
    token = CacheShape(config.layers, 1, config.kv_heads, 1, config.head_dim, dtype)
    limit = min(
        config.context_tokens,
        context_tokens,
        filled_bytes // token.token_bytes,
        _ADDRESS_BYTES_MAX // (token.token_bytes * rows),
    )
    if limit < LENGTH_STEP:
        raise ModelLoadError(f"{filled_bytes} bytes of cache are too few for {slots} slots")
    context = limit // LENGTH_STEP * LENGTH_STEP
    shape = dataclasses.replace(token, rows=rows, context_tokens=context)
    return CacheBudget(shape, filled_bytes // token.token_bytes)


def _free_gpu_bytes(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> int:
    """What is left for the cache once the weights, which are not loaded yet, are there."""
    layer = config.hidden_size * (
        2 * (config.heads + config.kv_heads) * config.head_dim + 3 * config.intermediate_size
    )
    weights = config.layers * layer + 2 * config.vocab_size * config.hidden_size
    free, total = torch.cuda.mem_get_info(device)
    # The worker's share of the card: see `capanode.memory_ledger`.
    share = torch.cuda.get_per_process_memory_fraction(device)
    free = min(free, int(total * share)) - weights * dtype.itemsize
    return int(max(free, 0) * _GPU_CACHE_SHARE)
