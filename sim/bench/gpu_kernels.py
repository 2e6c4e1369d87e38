"""What the device itself can do: copy memory, attend over pages of a cache (also as a CUDA graph),
how exactly, and run a layer's products for prompts cut into chunks.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from sim.bench.random_model import ModelShape

# FlashAttention 2's pages are multiples of this.
_PAGE_TOKENS = 256
_ROUNDS = 20
_COPIED_BYTES = 1024**3
_SMALL_COPIED_BYTES = 8 * 1024**2
_SEED = 7


def bandwidth(device: str) -> float:
    """Bytes per second that a copy reads and writes."""
    size = _COPIED_BYTES if device != "cpu" else _SMALL_COPIED_BYTES
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def attention_errors(shape: ModelShape, device: str, tokens: int) -> dict[str, float]:
    """The largest error of one row's attention in bfloat16, relative to the largest number of the
    answer in float64: by products and softmax in bfloat16, and by torch's fused kernel."""
    query, keys, values = _attended(shape, tokens, device)
    exact = scaled_dot_product_attention(query.double(), keys.double(), values.double())
    scores = query @ keys.transpose(-1, -2) * shape.head_dim**-0.5
    plain = scores.softmax(-1) @ values
    fused = scaled_dot_product_attention(query, keys, values)
    return {
        "attention_error_plain": _error(plain, exact),
        "attention_error_fused": _error(fused, exact),
    }


def paged_attention(
    shape: ModelShape, device: str, rows: int, tokens: int, copied_per_s: float
) -> dict[str, float]:
    """A decode step's attention of one layer over a paged cache, by torch's own kernel: its time,
    captured and not, its share of what memory allows, its error, and whether a row's bits depend on
    the rows beside it. `num_splits=1`, because the automatic choice gave NaN on some cards."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  # from torch 2.13 on

    pages = -(-tokens // _PAGE_TOKENS)
    pool = (rows * pages, _PAGE_TOKENS, shape.kv_heads, shape.head_dim)
    generator = torch.Generator(device).manual_seed(_SEED)
    keys, values = (_normal(pool, device, generator) for _ in range(2))
    query = _normal((rows, shape.heads, shape.head_dim), device, generator)
    order = torch.randperm(rows * pages, generator=generator, device=device)
    table = order.view(rows, pages).to(torch.int32)

    def attend(count: int) -> Callable[[], Tensor]:
        ends = torch.arange(count + 1, dtype=torch.int32, device=device)
        used = torch.full((count,), tokens, dtype=torch.int32, device=device)

        def run() -> Tensor:
            out = varlen_attn(
                query[:count],
                keys,
                values,
                ends,
                None,
                1,
                pages * _PAGE_TOKENS,
                enable_gqa=True,
                seqused_k=used,
                block_table=table[:count],
                num_splits=1,
            )
            assert isinstance(out, Tensor)
            return out

        return run

    run = attend(rows)
    first = run()
    plain_s = _seconds(run, device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph_s = _seconds(graph.replay, device)
    read_bytes = 2 * rows * tokens * shape.kv_heads * shape.head_dim * keys.element_size()
    own_keys, own_values = (
        part[table[0]].flatten(0, 1)[:tokens].transpose(0, 1).double() for part in (keys, values)
    )
    own_query = query[0].double().view(shape.kv_heads, -1, shape.head_dim)
    exact = scaled_dot_product_attention(own_query, own_keys, own_values).flatten(0, 1)
    name = f"paged_{rows}x{tokens}"
    return {
        f"{name}_us": plain_s * 1e6,
        f"{name}_graph_us": graph_s * 1e6,
        f"{name}_floor_share": read_bytes / copied_per_s / graph_s,
        f"{name}_error": _error(first[0], exact),
        f"{name}_same_bits_alone": float(torch.equal(attend(1)()[0], first[0])),
    }


def chunk_speeds(shape: ModelShape, device: str, chunks: tuple[int, ...]) -> dict[str, float]:
    """Tokens per second that the products of all layers would take in, by the size of a chunk."""
    generator = torch.Generator(device).manual_seed(_SEED)
    sizes = [
        size
        for name, size in shape.tensors.items()
        if name.startswith("model.layers.0.") and len(size) == 2
    ]
    weights = [_normal(size, device, generator) for size in sizes]
    figures = {}
    for chunk in chunks:
        inputs = [_normal((chunk, size[1]), device, generator) for size in sizes]

        def run(inputs: list[Tensor] = inputs) -> None:
            for taken, weight in zip(inputs, weights, strict=True):
                linear(taken, weight)

        figures[f"products_tps_{chunk}"] = chunk / (_seconds(run, device) * shape.layers)
    return figures


def _attended(shape: ModelShape, tokens: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """The query, keys and values of one row."""
    generator = torch.Generator(device).manual_seed(_SEED)
    cached = (1, shape.heads, tokens, shape.head_dim)
    query = _normal((1, shape.heads, 1, shape.head_dim), device, generator)
    return query, _normal(cached, device, generator), _normal(cached, device, generator)


def _normal(shape: tuple[int, ...], device: str, generator: torch.Generator) -> Tensor:
    numbers = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
    return numbers.to(torch.bfloat16)


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


def _seconds(run: Callable[[], object], device: str) -> float:
    """Of one run, in the mean over many, after two that are not counted."""
    for _ in range(2):
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    began_s = time.perf_counter()
    for _ in range(_ROUNDS):
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - began_s) / _ROUNDS
