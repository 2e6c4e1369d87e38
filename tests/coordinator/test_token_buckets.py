"""Token buckets under a clock that the test moves."""

import pytest

from coordinator.token_buckets import TokenBuckets


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_token_comes_back_after_its_share_of_a_minute() -> None:
    clock = Clock()
    buckets = TokenBuckets(clock)
    assert [buckets.take("a", 2).remaining for _ in range(2)] == [1, 0]
    refused = buckets.take("a", 2)
    assert (refused.wait_s, refused.full_in_s) == (30.0, 60.0)
    clock.now += 30.0
    assert buckets.take("a", 2).wait_s == 0
    assert buckets.take("b", 2).remaining == 1, "others have buckets of their own"


def test_an_idle_bucket_never_holds_more_than_a_minutes_worth() -> None:
    clock = Clock()
    buckets = TokenBuckets(clock)
    buckets.take("a", 3)
    clock.now += 3_600
    assert [buckets.take("a", 3).wait_s > 0 for _ in range(4)] == [False, False, False, True]


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.token_buckets.BUCKETS_MAX", 3)
    buckets = TokenBuckets(Clock())
    for name in "abcd":
        buckets.take(name, 5)
    assert len(buckets._buckets) == 3
    assert "a" not in buckets._buckets
