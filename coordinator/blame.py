"""Whose fault it is when a job does not end well, as far as its code tells."""

from enum import Enum, auto

from protocol.errors import Code

_CLIENTS_FAULT = frozenset(
    {
        Code.INVALID_INPUT,
        Code.PROMPT_TOO_LONG,
        Code.INPUT_TOO_LARGE,
        Code.INVALID_IMAGE,
        Code.IMAGE_TOO_LARGE,
    }
)
_REFUSALS = frozenset(
    {
        Code.BUSY,
        Code.DRAINING,
        Code.RATE_LIMITED,
        Code.MODEL_UNAVAILABLE,
        Code.ISOLATION_UNAVAILABLE,
        Code.UNTRUSTED_COORDINATOR,
    }
)
_NO_VERDICT = frozenset(
    {
        Code.CANCELLED,
        Code.COORDINATOR_LOST,
        Code.NO_NODE_FITS,
        Code.OUT_OF_FUNDS,
        Code.BUDGET_EXCEEDED,
    }
)


class Blame(Enum):
    """What the code of an unfinished job says about the node."""

    FAILURE = auto()
    REFUSAL = auto()
    CLIENT = auto()
    NOBODY = auto()


def blame_for(code: Code) -> Blame:
    """Everything that is not known to be harmless counts against the node: a code that a newer peer
    invents must not be a way to fail for free."""
    if code in _REFUSALS:
        return Blame.REFUSAL
    if code in _CLIENTS_FAULT:
        return Blame.CLIENT
    return Blame.NOBODY if code in _NO_VERDICT else Blame.FAILURE
