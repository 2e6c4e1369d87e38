"""Which attention goes with which cache: rows in place on a CPU, block tables on a GPU."""

import inspect
from collections.abc import Sequence

import torch

from capanode.engines.attention import (
    Attention,
    DecodeAttention,
    NextAttention,
    PrefillAttention,
    PrefillChunk,
)
from capanode.engines.attention_rules import AttentionRules
from capanode.engines.kv_cache import KvCache
from capanode.engines.paged_attention import Kernel, PagedDecodeAttention, PagedPrefillAttention
from capanode.engines.paged_cache import PagedCache
from capanode.engines.varlen_plain import plain_varlen

JobCache = KvCache | PagedCache


def prompt_attention(
    cache: JobCache,
    chunks: Sequence[PrefillChunk],
    rows: Sequence[int],
    positions: Sequence[int],
    rules: AttentionRules,
) -> Attention:
    """For chunks of prompts; `rows` and `positions` are those of all tokens with the padding."""
    if isinstance(cache, PagedCache):
        kernel = kernel_of(cache.device)
        return PagedPrefillAttention(cache, chunks, rows, positions, rules, kernel)
    own, places = (torch.tensor(numbers, device=cache.device) for numbers in (rows, positions))
    return PrefillAttention(cache, chunks, own, places, rules)


def next_attention(cache: JobCache, lengths: Sequence[int], rules: AttentionRules) -> NextAttention:
    """For one new token in each of rows 0..n, which then have these lengths."""
    if isinstance(cache, PagedCache):
        return PagedDecodeAttention(cache, lengths, rules, kernel_of(cache.device))
    return DecodeAttention(cache, lengths, rules)


def kernel_of(device: torch.device) -> Kernel:
    """torch 2.11 has the kernel without block tables (pytorch#175924)."""
    if device.type != "cuda":
        return plain_varlen
    # It brings torch's compiler along: a second of every start, and packages that a node lacks.
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415

    is_paged = "block_table" in inspect.signature(varlen_attn).parameters
    return varlen_attn if is_paged else plain_varlen
