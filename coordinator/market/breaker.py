"""When to leave a node alone: a breaker for errors and a cool-down for refusals.

Both are plain state machines of one node; time and jitter are arguments. They are separate because
they mean different things: an error wasted a client's time, while a refusal was fast and honest,
and only says "not now". Who owns one of each per node is `coordinator.market.reputation`.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from protocol.ids import PeerId

# Three in a row is no coincidence on a node that normally works, and it bounds what one node that
# swallows every job can cost before it is out.
FAILURES_TO_OPEN = 3
# Failures so far apart are no row: a quiet node that crashes once a day is not one that is broken.
ROW_GAP_MS = 600_000
# A restart takes seconds; a broken driver lasts until a person looks. Doubling covers both, and the
# cap keeps a repaired node from waiting longer than a coffee.
OPEN_BASE_MS = 2_000
OPEN_MAX_MS = 300_000
# A probe whose outcome never comes back (its caller died) must not keep the node out for ever.
PROBE_TIMEOUT_MS = 60_000
# So many successes in a row and the next outage starts from the shortest wait again. Fewer would
# let a flapping node fail at the shortest interval all day.
SUCCESSES_TO_FORGIVE = 10

# A slot usually frees up within a token or two of some other job.
COOL_BASE_MS = 250
COOL_MAX_MS = 60_000
# A single client can make an honest node refuse. Refusals to this many keep the node from all.
REFUSED_TO_COOL = 3
# A node may say that the client is at fault; one that says so of all refuses under another
# name. A single client could make any node say it, and so counts once.
BLAMES_FORGIVEN = 5
# Strangers' reports of failures open the breaker when so many of them agree.
ACCUSERS_TO_OPEN = 3

# 2^20 times any base is above every cap; larger shifts would only make larger numbers.
_DOUBLINGS_MAX = 20


class BreakerState(StrEnum):
    """Closed lets jobs through, open none, half-open one at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


def backoff_ms(base_ms: int, doublings: int, max_ms: int, *, jitter: float) -> int:
    """`base_ms` doubled that often, capped, then spread by `jitter` in [0, 1) to 75–125 %.

    Without the spread, coordinators that saw the same outage would all probe at the same moment.
    """
    plain_ms = min(base_ms << min(doublings, _DOUBLINGS_MAX), max_ms)
    return round(plain_ms * (0.75 + 0.5 * jitter))


@dataclass(slots=True)
class Breaker:
    """Opens on errors; after a capped exponential wait it lets single probes through."""

    failures_in_row: int = 0
    failed_at_ms: int = 0
    successes_in_row: int = 0
    openings: int = 0
    open_until_ms: int = 0  # 0 while closed
    probe_until_ms: int = 0  # 0 unless a probe is under way

    def state(self, now_ms: int) -> BreakerState:
        if not self.open_until_ms:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_ms < self.open_until_ms else BreakerState.HALF_OPEN

    @property
    def blocked_until_ms(self) -> int:
        """No job should go there before; covers the open time and a probe under way."""
        return max(self.open_until_ms, self.probe_until_ms)

    def on_attempt(self, now_ms: int) -> bool:
        """A job is being sent. The first one after an outage is the probe, and goes alone. Returns
        whether this is one."""
        is_probe = self.state(now_ms) is BreakerState.HALF_OPEN
        if is_probe:
            self.probe_until_ms = now_ms + PROBE_TIMEOUT_MS
        return is_probe

    def on_success(self, now_ms: int) -> None:
        """A job that was sent before the outage may still succeed; it says nothing about now."""
        if self.state(now_ms) is BreakerState.OPEN:
            return
        self.open_until_ms = self.probe_until_ms = 0
        self.failures_in_row = 0
        self.successes_in_row += 1
        if self.successes_in_row >= SUCCESSES_TO_FORGIVE:
            self.openings = 0

    def on_failure(self, now_ms: int, *, fails_often: bool, jitter: float) -> bool:
        """Returns True if this opened it. `fails_often` opens a closed breaker at once: most recent
        jobs failed, even if some that succeeded lay between.

        Jobs already running when it opened fail together with the node: they count once.
        """
        state = self.state(now_ms)
        if state is BreakerState.OPEN:
            return False
        self.successes_in_row = 0
        if now_ms - self.failed_at_ms > ROW_GAP_MS:
            self.failures_in_row = 0
        self.failures_in_row += 1
        self.failed_at_ms = now_ms
        is_spared = self.failures_in_row < FAILURES_TO_OPEN and not fails_often
        if state is BreakerState.CLOSED and is_spared:
            return False
        wait_ms = backoff_ms(OPEN_BASE_MS, self.openings, OPEN_MAX_MS, jitter=jitter)
        self.openings += 1
        self.open_until_ms = now_ms + wait_ms
        self.probe_until_ms = 0
        return True

    def on_no_verdict(self) -> None:
        """The job ended for reasons of its own (cancelled, refused): the next may probe again."""
        self.probe_until_ms = 0


@dataclass(slots=True)
class Cooldown:
    """Waits after refusals to several clients, at least as long as the node asked for, and longer
    if it goes on."""

    refusals_in_row: int = 0
    refused: set[PeerId] = field(default_factory=set)
    blamed: set[PeerId] = field(default_factory=set)
    until_ms: int = 0

    def on_refusal(
        self, client: PeerId, now_ms: int, *, retry_after_ms: int | None, jitter: float
    ) -> None:
        """The node's own `retry_after_ms` is believed up to a cap, but never below our back-off: a
        node that refuses everything and says "come back now" is not worth asking.

        Refusals of jobs that were sent before the wait began do not prolong it.
        """
        if len(self.refused) < REFUSED_TO_COOL:
            self.refused.add(client)
        if now_ms < self.until_ms or len(self.refused) < REFUSED_TO_COOL:
            return
        wait_ms = backoff_ms(COOL_BASE_MS, self.refusals_in_row, COOL_MAX_MS, jitter=jitter)
        self.refusals_in_row += 1
        self.until_ms = now_ms + max(wait_ms, min(retry_after_ms or 0, COOL_MAX_MS))

    def on_blame(self, client: PeerId, now_ms: int, *, jitter: float) -> None:
        """The node refused a job as this client's fault; that is free until it becomes a habit."""
        if len(self.blamed) <= BLAMES_FORGIVEN:
            self.blamed.add(client)
        if len(self.blamed) > BLAMES_FORGIVEN:
            self.refused |= self.blamed
            self.on_refusal(client, now_ms, retry_after_ms=None, jitter=jitter)

    def on_success(self) -> None:
        self.refusals_in_row = 0
        self.refused.clear()
        self.blamed.clear()
