"""Breaker and cool-down of one node, step by step."""

from hypothesis import given
from hypothesis import strategies as st

from coordinator.market.breaker import (
    BLAMES_FORGIVEN,
    COOL_BASE_MS,
    COOL_MAX_MS,
    FAILURES_TO_OPEN,
    OPEN_BASE_MS,
    OPEN_MAX_MS,
    PROBE_TIMEOUT_MS,
    REFUSED_TO_COOL,
    ROW_GAP_MS,
    SUCCESSES_TO_FORGIVE,
    Breaker,
    BreakerState,
    Cooldown,
    backoff_ms,
)
from protocol.ids import PeerId

NOW_MS = 1_800_000_000_000
MIDDLE = 0.5  # the jitter that changes nothing


def fail(breaker: Breaker, now_ms: int, times: int = 1) -> None:
    for _ in range(times):
        breaker.on_failure(now_ms, fails_often=False, jitter=MIDDLE)


def opened() -> Breaker:
    breaker = Breaker()
    fail(breaker, NOW_MS, FAILURES_TO_OPEN)
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    breaker = Breaker()
    fail(breaker, NOW_MS, FAILURES_TO_OPEN - 1)
    breaker.on_success(NOW_MS)
    fail(breaker, NOW_MS, FAILURES_TO_OPEN - 1)
    assert breaker.state(NOW_MS) is BreakerState.CLOSED
    fail(breaker, NOW_MS)
    assert breaker.state(NOW_MS) is BreakerState.OPEN
    assert breaker.blocked_until_ms == NOW_MS + OPEN_BASE_MS


def test_it_opens_at_once_on_a_node_that_fails_often() -> None:
    breaker = Breaker()
    assert breaker.on_failure(NOW_MS, fails_often=True, jitter=MIDDLE)


def test_jobs_that_fail_together_count_as_one_outage() -> None:
    breaker = opened()
    fail(breaker, NOW_MS + 1, 30)
    assert breaker.openings == 1
    assert breaker.blocked_until_ms == NOW_MS + OPEN_BASE_MS


def test_one_probe_at_a_time_after_the_wait() -> None:
    breaker = opened()
    later_ms = NOW_MS + OPEN_BASE_MS
    assert breaker.state(later_ms) is BreakerState.HALF_OPEN
    assert breaker.blocked_until_ms <= later_ms
    breaker.on_attempt(later_ms)
    assert breaker.blocked_until_ms == later_ms + PROBE_TIMEOUT_MS
    breaker.on_success(later_ms + 1)
    assert breaker.state(later_ms + 1) is BreakerState.CLOSED
    assert breaker.blocked_until_ms == 0


def test_a_failed_probe_doubles_the_wait() -> None:
    breaker = opened()
    now_ms = NOW_MS
    for doublings in range(1, 12):
        now_ms = breaker.open_until_ms
        breaker.on_attempt(now_ms)
        fail(breaker, now_ms)
        assert breaker.open_until_ms - now_ms == min(OPEN_BASE_MS << doublings, OPEN_MAX_MS)


def test_a_probe_without_verdict_frees_the_way_for_the_next() -> None:
    breaker = opened()
    later_ms = NOW_MS + OPEN_BASE_MS
    breaker.on_attempt(later_ms)
    breaker.on_no_verdict()
    assert breaker.blocked_until_ms <= later_ms
    assert breaker.state(later_ms) is BreakerState.HALF_OPEN


def test_a_success_from_before_the_outage_closes_nothing() -> None:
    breaker = opened()
    breaker.on_success(NOW_MS + 1)
    assert breaker.state(NOW_MS + 1) is BreakerState.OPEN


def test_attempts_on_a_healthy_node_block_nobody() -> None:
    breaker = Breaker()
    breaker.on_attempt(NOW_MS)
    assert breaker.blocked_until_ms == 0


def test_old_outages_are_forgiven_after_a_row_of_successes() -> None:
    breaker = opened()
    now_ms = breaker.open_until_ms
    for _ in range(SUCCESSES_TO_FORGIVE - 1):
        breaker.on_success(now_ms)
    assert breaker.openings == 1
    breaker.on_success(now_ms)
    assert breaker.openings == 0


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_stays_near_its_cap(doublings: int, jitter: float) -> None:
    wait_ms = backoff_ms(OPEN_BASE_MS, doublings, OPEN_MAX_MS, jitter=jitter)
    assert 0.75 * OPEN_BASE_MS <= wait_ms <= 1.25 * OPEN_MAX_MS


def refuse(cooldown: Cooldown, now_ms: int, *, retry_after_ms: int | None, jitter: float) -> None:
    """A refusal to yet another client, after enough others to be believed."""
    others = {PeerId(f"other {number}") for number in range(REFUSED_TO_COOL)}
    cooldown.refused |= others
    cooldown.on_refusal(PeerId("client"), now_ms, retry_after_ms=retry_after_ms, jitter=jitter)


def test_one_client_that_is_refused_keeps_the_node_from_nobody_else() -> None:
    cooldown = Cooldown()
    for _ in range(6):
        cooldown.on_refusal(PeerId("client"), NOW_MS, retry_after_ms=5_000, jitter=MIDDLE)
    assert cooldown.until_ms == 0
    for number in range(REFUSED_TO_COOL - 1):
        client = PeerId(f"client {number}")
        cooldown.on_refusal(client, NOW_MS, retry_after_ms=5_000, jitter=MIDDLE)
    assert cooldown.until_ms == NOW_MS + 5_000


def test_refusals_wait_longer_each_time_and_one_success_ends_it() -> None:
    cooldown = Cooldown()
    now_ms, waits = NOW_MS, []
    for _ in range(12):
        refuse(cooldown, now_ms, retry_after_ms=None, jitter=MIDDLE)
        waits.append(cooldown.until_ms - now_ms)
        now_ms = cooldown.until_ms
    assert waits[:3] == [COOL_BASE_MS, 2 * COOL_BASE_MS, 4 * COOL_BASE_MS]
    assert waits[-1] == COOL_MAX_MS
    cooldown.on_success()
    refuse(cooldown, now_ms, retry_after_ms=None, jitter=MIDDLE)
    assert cooldown.until_ms - now_ms == COOL_BASE_MS


def test_the_node_is_believed_when_it_says_how_long() -> None:
    cooldown = Cooldown()
    refuse(cooldown, NOW_MS, retry_after_ms=5_000, jitter=MIDDLE)
    assert cooldown.until_ms == NOW_MS + 5_000
    cooldown = Cooldown()
    refuse(cooldown, NOW_MS, retry_after_ms=10**12, jitter=MIDDLE)
    assert cooldown.until_ms == NOW_MS + COOL_MAX_MS


def test_come_back_now_does_not_cut_the_wait() -> None:
    cooldown = Cooldown(refusals_in_row=5)
    refuse(cooldown, NOW_MS, retry_after_ms=0, jitter=MIDDLE)
    assert cooldown.until_ms == NOW_MS + (COOL_BASE_MS << 5)


def test_a_burst_of_refusals_counts_once() -> None:
    cooldown = Cooldown()
    for _ in range(32):
        refuse(cooldown, NOW_MS, retry_after_ms=None, jitter=MIDDLE)
    assert cooldown.refusals_in_row == 1


def test_blaming_the_client_is_free_only_a_few_times() -> None:
    cooldown = Cooldown()
    for client in range(BLAMES_FORGIVEN):
        for _ in range(3):
            cooldown.on_blame(PeerId(f"client {client}"), NOW_MS, jitter=MIDDLE)
    assert cooldown.until_ms == 0
    cooldown.on_blame(PeerId("another"), NOW_MS, jitter=MIDDLE)
    assert cooldown.until_ms > NOW_MS
    cooldown.on_success()
    assert not cooldown.blamed


def test_failures_with_a_quiet_time_between_them_are_no_row() -> None:
    breaker = Breaker()
    for number in range(3 * FAILURES_TO_OPEN):
        fail(breaker, NOW_MS + number * (ROW_GAP_MS + 1))
    assert breaker.state(NOW_MS) is BreakerState.CLOSED
    fail(breaker, NOW_MS + 3 * FAILURES_TO_OPEN * ROW_GAP_MS, FAILURES_TO_OPEN)
    assert breaker.state(NOW_MS + 3 * FAILURES_TO_OPEN * ROW_GAP_MS) is BreakerState.OPEN
