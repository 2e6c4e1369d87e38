"""A second attempt beside one that is late with its first output: the first to have some wins.

A node is given up for dead after several times what is expected of it; a buyer that hedges does not
wait for that. The loser is cancelled at once: what its node counted by then is charged.
"""

from collections.abc import Awaitable, Callable

import trio

from coordinator.buyer.attempt import Attempt
from coordinator.buyer.errors import JobFailed
from protocol.grants import Granted

# Where it is not known what a node usually takes: of the time after which it is given up, which is
# at least four times what the coordinator expects of it, so twice that.
HEDGE_SHARE = 0.5

# An attempt at another node, and how long leasing took in milliseconds; None if there is none.
Entrant = tuple[Attempt | None, float]


def hedge_after_s(granted: Granted) -> float:
    """When a second attempt begins: later than 19 of 20 of this node's first outputs."""
    within_ms = granted.first_output_within_ms
    after_ms = min(granted.hedge_after_ms, within_ms) or HEDGE_SHARE * within_ms
    return after_ms / 1_000


class Race:
    """`winner` has output; if there is none, all `failures` have ended without. `losers` are still
    running."""

    def __init__(self, *, attempts: Callable[[], int]) -> None:
        self.winner: Attempt | None = None
        self.failures: list[tuple[Attempt, JobFailed]] = []
        self._attempts = attempts
        self._entrants: list[Attempt] = []

    @property
    def losers(self) -> list[Attempt]:
        over = [self.winner, *(attempt for attempt, _ in self.failures)]
        return [attempt for attempt in self._entrants if attempt not in over]

    async def run(
        self, first: Attempt, lease_ms: float, open_second: Callable[[], Awaitable[Entrant]]
    ) -> None:
        """Returns when there is a winner, or `first` has failed and no second one runs. Its caller
        lets go of losers and failures, also if this is cancelled."""
        hedge_at = trio.current_time() + hedge_after_s(first.granted)
        self._entrants.append(first)
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope

            async def enter(attempt: Attempt, lease_ms: float) -> None:
                try:
                    await attempt.wait_first_output(attempts=self._attempts(), lease_ms=lease_ms)
                except JobFailed as failure:
                    self.failures.append((attempt, failure))
                    # Before the second one has begun there is nothing to wait for either.
                    if len(self.failures) == len(self._entrants):
                        scope.cancel()
                    return
                if self.winner is None:
                    self.winner = attempt
                scope.cancel()

            nursery.start_soon(enter, first, lease_ms)
            await trio.sleep_until(hedge_at)
            try:
                second, second_lease_ms = await open_second()
            except JobFailed:
                return  # No other node can do it: the first one may still.
            if second is not None:
                self._entrants.append(second)
                nursery.start_soon(enter, second, second_lease_ms)
