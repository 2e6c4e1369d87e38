"""What follows when the job of some lines fails. Pure."""

from dataclasses import dataclass

from protocol.errors import RETRYABLE_LATER, Code, may_succeed_elsewhere

# A node's failures, after each of which another node was tried already.
FAILURES_MAX = 4
# The market may be full, or away, for hours: what can still be answered waits for it.
_WAIT_MIN_S, _WAIT_MAX_S = 0.5, 30.0
# A user who pays sees the batch go on within a minute.
_FUNDS_WAIT_S = 30.0

_NO_FUNDS = (Code.OUT_OF_FUNDS, Code.BUDGET_EXCEEDED, Code.UNKNOWN_ACCOUNT)
# Waiting is all that is needed, however long it takes.
_NO_CAPACITY = frozenset({Code.NO_NODE_FITS, *RETRYABLE_LATER} - {Code.INTERNAL})


@dataclass(frozen=True, slots=True)
class Wait:
    """Try again later; `why` is what the batch's user is told meanwhile."""

    seconds: float
    why: Code | None = None
    is_failure: bool = False


class Split:
    """Some line of several is at fault: try them in two parts."""


class GiveUp:
    """The lines have failed."""


def next_step(
    code: Code, *, waits: int, failures: int, lines: int, is_billed: bool
) -> Wait | Split | GiveUp:
    """`waits` and `failures` count what these lines went through so far."""
    pause_s = min(_WAIT_MIN_S * 2 ** min(waits + failures, 10), _WAIT_MAX_S)
    if is_billed:
        return GiveUp()  # another try would be paid again
    if code is Code.STORAGE_FULL:
        return Wait(_FUNDS_WAIT_S, why=code)
    if code in _NO_FUNDS:
        return Wait(_FUNDS_WAIT_S, why=code)
    # Of a key that was revoked the next try finds out, and ends the batch.
    if code in _NO_CAPACITY or code is Code.UNKNOWN_API_KEY:
        return Wait(pause_s)
    if may_succeed_elsewhere(code) and failures + 1 < FAILURES_MAX:
        return Wait(pause_s, is_failure=True)
    return Split() if lines > 1 else GiveUp()
