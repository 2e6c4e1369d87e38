"""Attention over block tables in plain torch, with the signature of torch's own kernel.

It stands in where that kernel cannot run: on a CPU (in tests), for models whose scores are bent,
which the kernel does not do, and with a torch that has no paged kernel. It goes from sequence to
sequence, so it is slow.
"""

import torch
from torch import Tensor


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int,
    softcap: float | None = None,
) -> Tensor:
    """As `torch.nn.attention.varlen.varlen_attn` with a block table: `query` is [tokens, heads,
    dim], key and value are [pages, page_tokens, kv_heads, dim]."""
    ends = cu_seq_q.tolist()
    attended = torch.empty_like(query)
    for index, used in enumerate(seqused_k.tolist()):
        first, last = ends[index], ends[index + 1]
        keys, values = (
            pool[block_table[index]].flatten(0, 1)[:used].transpose(0, 1).float()
            for pool in (key, value)
        )
        rows = query[first:last].transpose(0, 1).float()  # [heads, count, dim]
        grouped = rows.view(keys.shape[0], -1, last - first, query.shape[2])
        scores = (grouped @ keys[:, None].transpose(-1, -2)).mul_(scale)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        places = torch.arange(used - (last - first), used, device=query.device)[:, None]
        back = places - torch.arange(used, device=query.device)
        hidden = back < 0
        if window_size[0] >= 0:
            hidden |= back > window_size[0]
        weights = torch.softmax(scores.masked_fill_(hidden, -torch.inf), -1)
        found = (weights @ values[:, None]).flatten(0, 1)
        attended[first:last] = found.transpose(0, 1).to(query.dtype)
    return attended
