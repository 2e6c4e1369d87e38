"""Token buckets under a clock that the test moves."""

import pytest

from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.dialect import problem_response
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.rate_limit import RateLimits
from tests.clocks import HandClock


def taken(limits: RateLimits, key: str = "k", rate: int = 60) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in limits.take(key, rate)}


def test_a_minute_may_be_spent_at_once_and_comes_back_steadily() -> None:
    clock = HandClock()
    limits = RateLimits(clock)
    left = [taken(limits)["x-ratelimit-remaining-requests"] for _ in range(60)]
    assert left == [str(59 - n) for n in range(60)]
    with pytest.raises(ApiError) as caught:
        limits.take("k", 60)
    assert (caught.value.problem.status, caught.value.problem.should_retry) == (429, True)
    assert caught.value.problem.retry_after_ms == 1_000
    clock.pass_s(1)
    assert taken(limits)["x-ratelimit-remaining-requests"] == "0"


def test_a_refusal_says_the_limit_too() -> None:
    limits = RateLimits(HandClock())
    limits.take("k", 1)
    with pytest.raises(ApiError) as caught:
        limits.take("k", 1)
    response = problem_response(caught.value.problem, OPENAI)
    headers = dict(response.headers)
    assert headers[b"x-ratelimit-limit-requests"] == b"1"
    assert headers[b"retry-after"] == b"60"
    assert headers[b"retry-after-ms"] == b"60000"


def test_keys_do_not_share_a_bucket() -> None:
    limits = RateLimits(HandClock())
    limits.take("a", 1)
    assert taken(limits, "b", 1)["x-ratelimit-limit-requests"] == "1"


@pytest.mark.parametrize(
    ("rate", "used", "text"), [(6_000, 1, "10ms"), (60, 2, "2s"), (1, 1, "1m0s"), (40, 1, "1.5s")]
)
def test_the_reset_is_written_as_openai_does(rate: int, used: int, text: str) -> None:
    limits = RateLimits(HandClock())
    for _ in range(used):
        headers = taken(limits, rate=rate)
    assert headers["x-ratelimit-reset-requests"] == text
