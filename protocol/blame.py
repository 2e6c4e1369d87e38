"""Whose fault it is when a job does not end well, as far as its code and who says so tell.

Our own client is honest: what it sees of a node counts. Of a stranger's job we have the node's word
only, in a receipt that the stranger may have provoked.
"""

from dataclasses import dataclass
from enum import Enum, auto

from protocol.endings import Finish
from protocol.errors import Code
from protocol.pricing import Units

_CLIENTS_FAULT = frozenset(
    {
        Code.INVALID_INPUT,
        Code.PROMPT_TOO_LONG,
        Code.INPUT_TOO_LARGE,
        Code.INVALID_IMAGE,
        Code.IMAGE_TOO_LARGE,
        Code.POISON_INPUT,
        Code.UNSIGNED,
    }
)
# What a client can bring about at will: by what it sends, and by when.
_CLIENTS_DOING = _CLIENTS_FAULT | {
    Code.MALFORMED,
    Code.FRAME_TOO_LARGE,
    Code.TRUNCATED,
    Code.TRAILING_BYTES,
    Code.UNKNOWN_VERSION,
    Code.UNEXPECTED_FRAME,
    Code.BAD_SIGNATURE,
    Code.WRONG_SIGNER,
    Code.WRONG_AUDIENCE,
    Code.EXPIRED,
    Code.NOT_YET_VALID,
    Code.REPLAYED,
    Code.DIGEST_MISMATCH,
}
_REFUSALS = frozenset(
    {
        Code.BUSY,
        Code.DRAINING,
        Code.RATE_LIMITED,
        Code.MODEL_UNAVAILABLE,
        Code.ISOLATION_UNAVAILABLE,
        Code.UNTRUSTED_COORDINATOR,
        Code.STORAGE_FULL,
    }
)
_NO_VERDICT = frozenset(
    {
        Code.CANCELLED,
        Code.COORDINATOR_LOST,
        Code.NO_NODE_FITS,
        Code.OUT_OF_FUNDS,
        Code.BUDGET_EXCEEDED,
        # Kept rows may be lost at any time. Of a job that needs none it is a breach, which its
        # client sees.
        Code.STATE_MISSING,
    }
)


# What only a coordinator, a gateway or the client itself can know. A node that says so would pass
# its own failure off as theirs.
_NOT_FOR_NODES = frozenset(
    {
        Code.ALREADY_EXISTS,
        Code.BUDGET_EXCEEDED,
        Code.CANCELLED,
        Code.COORDINATOR_LOST,
        Code.NODE_LOST,
        Code.NO_NODE_FITS,
        Code.NOT_FOUND,
        Code.OUT_OF_FUNDS,
        Code.UNKNOWN_ACCOUNT,
        Code.UNKNOWN_API_KEY,
    }
)
# What a node finds in an input, and another one finds there, too.
_FOUND_IN_INPUT = _CLIENTS_FAULT - {Code.POISON_INPUT, Code.UNSIGNED}


class Blame(Enum):
    """What the code of an unfinished job says about the node."""

    FAILURE = auto()
    REFUSAL = auto()
    CLIENT = auto()
    NEUTRAL = auto()


@dataclass(frozen=True, slots=True)
class Observation:
    """How a node did. `code` is None if the job ended as it should, else `blame` says whose doing
    that is; `delivered` is what the client counted, and `has_receipt` whether it countersigned.
    `is_first_hand` if our own client saw it; else a party that may have staged it told us.
    `was_opened` is False where our own client never sent the node the job."""

    code: Code | None
    blame: Blame | None
    first_output_ms: float | None
    total_ms: float
    delivered: Units
    has_receipt: bool
    retry_after_ms: int | None = None
    is_first_hand: bool = True
    was_opened: bool = True


def may_node_say(code: Code) -> bool:
    """Whether a job that was not cancelled may be ended by its node with this code."""
    return code not in _NOT_FOR_NODES


def needs_second_opinion(code: Code) -> bool:
    """Whether a node's word blames the input, which one node could say of every input. Not of one
    that ended its worker: that is not tried again."""
    return code in _FOUND_IN_INPUT


def blame_for(code: Code) -> Blame:
    """Everything that is not known to be harmless counts against the node: a code that a newer peer
    invents must not be a way to fail for free."""
    if code in _REFUSALS:
        return Blame.REFUSAL
    if code in _CLIENTS_FAULT:
        return Blame.CLIENT
    return Blame.NEUTRAL if code in _NO_VERDICT else Blame.FAILURE


def blame_by_receipt(code: Code, finish: Finish) -> Blame:
    """For a job that only its node has told us of."""
    # Before the job was accepted, a deadline passes while its client dawdles over the payload.
    has_dawdled = code is Code.DEADLINE_EXCEEDED and finish is Finish.REFUSED
    if code in _CLIENTS_DOING or has_dawdled:
        return Blame.CLIENT
    return blame_for(code)
