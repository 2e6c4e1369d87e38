"""How long an answer that has begun waits for a node that can go on with it.

What is waited for passes by itself: a coordinator that is restarted is back within seconds, and its
nodes some seconds later; a seat becomes free; money comes back that a dead node's lease holds. An
answer of a batch has no reader who waits: it goes on when there is an idle seat again.
"""

import math

import trio

from coordinator.buyer.errors import JobFailed
from protocol.errors import RETRYABLE_LATER, Code

RESUME_WITHIN_S = 30.0
_PAUSE_S = 0.1
_PAUSE_MAX_S = 2.0
# What may pass, of what a coordinator says.
_PASSING = RETRYABLE_LATER - {Code.DEADLINE_EXCEEDED} | {Code.NO_NODE_FITS, Code.UNKNOWN_MODEL}
# What passes if a coordinator says when: jobs that run now hold the money. Else it is spent.
_MONEY = frozenset({Code.OUT_OF_FUNDS, Code.BUDGET_EXCEEDED})


class Resumption:
    """One wait. `is_patient` if it may take as long as `deadline` lets it, a trio time, and if an
    account that is spent may be filled meanwhile."""

    def __init__(self, *, deadline: float, is_patient: bool) -> None:
        within_s = math.inf if is_patient else RESUME_WITHIN_S
        self._gives_up_at = min(deadline, trio.current_time() + within_s)
        self._deadline = deadline
        self._is_patient = is_patient
        self._pause_s = _PAUSE_S

    def may_help(self, failure: JobFailed, *, by_node: bool) -> bool:
        """Whether to ask again after a failure, which is the last node's own if `by_node`."""
        if trio.current_time() >= self._gives_up_at:
            return False
        if by_node or failure.code in _PASSING:
            return True
        if failure.code not in _MONEY:
            return False
        if self._is_patient:
            return True
        if failure.retry_after_ms is None:
            return False
        return trio.current_time() + failure.retry_after_ms / 1_000 <= self._gives_up_at

    async def pause(self) -> None:
        """Longer each time."""
        left_s = max(self._deadline - trio.current_time(), 0.0)
        await trio.sleep(min(self._pause_s, left_s))
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
