import mmap

import pytest
import torch

from capanode.engines.attention import LENGTH_STEP, Segment, plan_segments
from capanode.engines.kv_cache import CacheShape, KvCache

# A row of the first takes whole pages and is given back to the system, one of the second does not.
SHAPES = [
    CacheShape(2, 4, 2, 64, 16, torch.bfloat16),
    CacheShape(2, 4, 1, 32, 2, torch.float32),
]


@pytest.fixture(params=SHAPES, ids=["pages", "bytes"])
def cache(request: pytest.FixtureRequest) -> KvCache:
    cache = KvCache(request.param, device=torch.device("cpu"))
    for layer in cache.layers:
        layer.copy_(torch.arange(1, layer.numel() + 1).view(layer.shape) % 251)
    return cache


def test_both_ways_to_release_are_tested() -> None:
    sizes = [shape.address_bytes // (shape.layers * shape.rows) for shape in SHAPES]
    assert [size % mmap.PAGESIZE == 0 for size in sizes] == [True, False]


def test_a_released_row_reads_as_zeros_and_the_others_stay(cache: KvCache) -> None:
    before = [layer.clone() for layer in cache.layers]
    cache.release(2, cache.shape.context_tokens)
    for layer, old in zip(cache.layers, before, strict=True):
        assert not layer[2].any()
        assert torch.equal(layer[[0, 1, 3]], old[[0, 1, 3]])


def test_a_moved_row_leaves_nothing_of_the_row_it_replaces(cache: KvCache) -> None:
    before = [layer.clone() for layer in cache.layers]
    cache.move(3, 1, 5, 20)
    for layer, old in zip(cache.layers, before, strict=True):
        assert torch.equal(layer[1, :, :5], old[3, :, :5])
        assert not layer[1, :, 5:20].any()
        assert not layer[3, :, :5].any()


def test_swapped_rows_exchange_their_tokens(cache: KvCache) -> None:
    before = [layer.clone() for layer in cache.layers]
    cache.swap(0, 3, 2, 9)
    for layer, old in zip(cache.layers, before, strict=True):
        assert torch.equal(layer[0, :, :9], old[2, :, :9])
        assert torch.equal(layer[2, :, :9], old[0, :, :9])


def test_keys_and_values_are_views_by_row_and_head(cache: KvCache) -> None:
    heads = cache.shape.kv_heads
    both = cache.keys_values(1, range(1, 3), 7)
    layer = cache.layers[1]
    for row in (1, 2):
        for head in range(heads):
            place = (row - 1) * heads + head
            assert torch.equal(both[place, 0], layer[row, 2 * head, :7])
            assert torch.equal(both[place, 1], layer[row, 2 * head + 1, :7])
    assert both.data_ptr() == layer[1].data_ptr()


def test_rows_of_like_length_attend_in_one_segment() -> None:
    assert plan_segments([3, 20, LENGTH_STEP]) == [Segment(range(3), LENGTH_STEP)]


def test_one_long_row_does_not_make_the_others_long() -> None:
    segments = plan_segments([40] * 10 + [2000] + [40] * 10)
    assert [segment.rows for segment in segments] == [range(10), range(10, 11), range(11, 21)]
    assert [segment.length for segment in segments] == [64, 2016, 64]


def test_segments_cover_every_row_once_and_reach_its_length() -> None:
    lengths = [1 + (row * 977) % 700 for row in range(32)]
    segments = plan_segments(lengths)
    assert [row for segment in segments for row in segment.rows] == list(range(32))
    for segment in segments:
        assert max(lengths[row] for row in segment.rows) <= segment.length
        assert segment.length % LENGTH_STEP == 0
