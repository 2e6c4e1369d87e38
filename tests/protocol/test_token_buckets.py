"""Token buckets, at times that the test chooses."""

from protocol.token_buckets import Rate, TokenBuckets

TWO_A_MINUTE = Rate.per_minute(2)


def test_a_token_comes_back_after_its_share_of_a_minute() -> None:
    buckets = TokenBuckets(keys_max=9)
    assert [buckets.take("a", TWO_A_MINUTE, now_s=50).remaining for _ in range(2)] == [1, 0]
    refused = buckets.take("a", TWO_A_MINUTE, now_s=50)
    assert (refused.wait_s, refused.full_in_s) == (30.0, 60.0)
    assert not buckets.has_any("a", TWO_A_MINUTE, now_s=79)
    assert buckets.has_any("a", TWO_A_MINUTE, now_s=80)
    assert buckets.take("a", TWO_A_MINUTE, now_s=80).wait_s == 0
    assert buckets.take("b", TWO_A_MINUTE, now_s=80).remaining == 1, "others have their own"


def test_an_idle_bucket_never_holds_more_than_its_burst() -> None:
    buckets, rate = TokenBuckets(keys_max=9), Rate(per_s=1.0, burst=3)
    buckets.take("a", rate, now_s=0)
    waits = [buckets.take("a", rate, now_s=3_600).wait_s for _ in range(4)]
    assert waits == [0, 0, 0, 1.0]


def test_a_clock_that_is_set_back_takes_nothing_away() -> None:
    buckets = TokenBuckets(keys_max=9)
    buckets.take("a", TWO_A_MINUTE, now_s=50)
    assert buckets.take("a", TWO_A_MINUTE, now_s=10).wait_s == 0


def test_buckets_are_bounded() -> None:
    buckets = TokenBuckets(keys_max=3)
    for name in "abcd":
        buckets.take(name, TWO_A_MINUTE, now_s=0)
    assert len(buckets) == 3
    buckets.take("b", TWO_A_MINUTE, now_s=0)
    assert buckets.take("a", TWO_A_MINUTE, now_s=0).remaining == 1, "the idlest was forgotten"
    assert buckets.take("b", TWO_A_MINUTE, now_s=0).wait_s > 0
