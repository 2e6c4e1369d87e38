"""Attention over the cache against the formula, whatever a layer's rule is."""

import pytest
import torch
from torch import Tensor

from capanode.engines.attention import (
    DecodeAttention,
    DraftAttention,
    PrefillAttention,
    PrefillChunk,
    ReplayAttention,
)
from capanode.engines.attention_rules import AttentionRules, LayerRule
from capanode.engines.kv_cache import CacheShape, KvCache

HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 16, 75
RULES = {
    "plain": LayerRule(DIM**-0.5),
    "scaled": LayerRule(0.4),
    "window": LayerRule(DIM**-0.5, window_tokens=20),
    "one token": LayerRule(DIM**-0.5, window_tokens=1),
    "wide window": LayerRule(DIM**-0.5, window_tokens=5000),
    "softcap": LayerRule(0.7, softcap=2.0),
    "softcap and window": LayerRule(0.7, window_tokens=33, softcap=2.0),
}
# All of them in one model: a layer takes its own.
MODEL = AttentionRules(HEADS, tuple(RULES.values()))


def tokens_of(count: int, *, seed: int) -> Tensor:
    """[layers, count, heads + 2 * kv_heads, dim]"""
    generator = torch.Generator().manual_seed(seed)
    sizes = (len(RULES), count, HEADS + 2 * KV_HEADS, DIM)
    return torch.randn(sizes, generator=generator)


def by_formula(mixed: Tensor, rule: LayerRule) -> Tensor:
    """What every token of one layer attends to: [tokens, heads * dim]."""
    mixed = mixed.double()
    queries = mixed[:, :HEADS].transpose(0, 1)
    both = mixed[:, HEADS:].transpose(0, 1)
    keys = both[0::2].repeat_interleave(HEADS // KV_HEADS, 0)
    values = both[1::2].repeat_interleave(HEADS // KV_HEADS, 0)
    scores = queries @ keys.transpose(1, 2) * rule.scale
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    back = torch.arange(len(mixed))[:, None] - torch.arange(len(mixed))
    hidden = (back < 0) | (back >= (rule.window_tokens or len(mixed)))
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
    return (weights @ values).transpose(0, 1).reshape(len(mixed), -1).float()


@pytest.fixture
def cache() -> KvCache:
    shape = CacheShape(len(RULES), 4, KV_HEADS, 128, DIM, torch.float32)
    return KvCache(shape, device=torch.device("cpu"))


def prefill(cache: KvCache, chunk: PrefillChunk, mixed: Tensor) -> Tensor:
    places = torch.arange(chunk.start, chunk.start + chunk.count)
    rows = torch.full_like(places, chunk.row)
    attention = PrefillAttention(cache, [chunk], rows, places, MODEL)
    return torch.stack([attention(layer, part) for layer, part in enumerate(mixed)])


@pytest.mark.parametrize("name", RULES)
def test_a_prompt_in_chunks_and_decoded_tokens_attend_as_the_formula_says(
    cache: KvCache, name: str
) -> None:
    layer = list(RULES).index(name)
    mixed = tokens_of(TOKENS, seed=1)
    expected = by_formula(mixed[layer], RULES[name])
    found = [
        prefill(cache, PrefillChunk(1, start, count), mixed[:, start : start + count])[layer]
        for start, count in ((0, 32), (32, 32))
    ]
    row = torch.zeros_like(mixed[:, :1])
    for at in range(64, TOKENS):
        attention = DecodeAttention(cache, [1, at + 1], MODEL)
        attention.set_positions(torch.tensor([0, at]))
        step = torch.cat((row, mixed[:, at : at + 1]), 1)
        for index, part in enumerate(step):
            attended = attention(index, part)
            if index == layer:
                found.append(attended[1:])
    torch.testing.assert_close(torch.cat(found), expected, atol=2e-5, rtol=1e-4)


def test_replayed_tokens_attend_bit_for_bit_as_they_were_decoded(cache: KvCache) -> None:
    mixed = tokens_of(TOKENS, seed=2)
    for row in (0, 2):
        prefill(cache, PrefillChunk(row, 0, 64), mixed[:, :64])
    decoded: list[Tensor] = []
    for at in range(64, TOKENS):
        attention = DecodeAttention(cache, [at + 1], MODEL)
        attention.set_positions(torch.tensor([at]))
        step = mixed[:, at : at + 1]
        decoded.append(torch.stack([attention(index, part) for index, part in enumerate(step)]))
    replay = ReplayAttention(cache, PrefillChunk(2, 64, TOKENS - 64), MODEL)
    replay.set_positions(torch.arange(64, TOKENS))
    replayed = torch.stack([replay(index, part) for index, part in enumerate(mixed[:, 64:])])
    assert torch.equal(replayed, torch.cat(decoded, 1))


@pytest.mark.parametrize("counts", [[1, 3, 1, 1], [4, 1, 1, 2], [2, 2, 2, 2], [1, 1, 1, 5]])
def test_drafted_tokens_attend_bit_for_bit_as_if_each_were_decoded(
    cache: KvCache, counts: list[int]
) -> None:
    lengths = [40, 64, 30, 64]  # Two rows go on in another segment of the cache.
    mixed = [tokens_of(TOKENS, seed=row) for row in range(4)]
    decoded: list[list[Tensor]] = [[] for _ in counts]
    for row, length in enumerate(lengths):
        prefill(cache, PrefillChunk(row, 0, length), mixed[row][:, :length])
    for more in range(max(counts)):
        places = [length + more for length in lengths]
        attention = DecodeAttention(cache, [place + 1 for place in places], MODEL)
        attention.set_positions(torch.tensor(places))
        step = torch.stack([own[:, at] for own, at in zip(mixed, places, strict=True)], 1)
        found = torch.stack([attention(index, part) for index, part in enumerate(step)])
        for row in range(4):
            decoded[row].append(found[:, row])
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        cache.clear(row, range(length, length + max(counts)))
        decoded[row] = decoded[row][:count]
    drafted = DraftAttention(cache, [length + 1 for length in lengths], MODEL, counts=counts)
    pairs = list(zip(lengths, counts, strict=True))
    drafted.set_positions(torch.tensor([n + more for n, count in pairs for more in range(count)]))
    step = torch.cat([own[:, n : n + c] for own, (n, c) in zip(mixed, pairs, strict=True)], 1)
    found = torch.stack([drafted(index, part) for index, part in enumerate(step)])
    assert torch.equal(found, torch.stack([one for row in decoded for one in row], 1))


def test_a_row_attends_bit_for_bit_alike_whatever_its_padding_and_its_neighbours() -> None:
    shape = CacheShape(len(RULES), 3, KV_HEADS, 1280, DIM, torch.bfloat16)
    cache = KvCache(shape, device=torch.device("cpu"))
    for row in range(3):
        prefill(cache, PrefillChunk(row, 0, 1180), tokens_of(1180, seed=row).bfloat16())
    mixed = tokens_of(3, seed=9).bfloat16()
    ends = [70, 700, 1180]

    def attended(lengths: list[int]) -> Tensor:
        """For rows 0..n, padded as for these lengths."""
        attention = DecodeAttention(cache, lengths, MODEL)
        attention.set_positions(torch.tensor(ends[: len(lengths)]))
        count = len(lengths)
        return torch.stack([attention(layer, part[:count]) for layer, part in enumerate(mixed)])

    together = attended([1190, 1190, 1190])
    assert torch.isfinite(together).all()
    assert torch.equal(attended([end + 1 for end in ends]), together)
    assert torch.equal(attended([ends[0] + 1]), together[:, :1])
    assert torch.equal(attended([ends[0] + 1, ends[1] + 1]), together[:, :2])
