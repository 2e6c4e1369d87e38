"""The words for how something ended, once for all: session, settling, gateway and database.

A receipt says how a job finished (`Finish`), a lease what became of its hold (`LeaseState`), a
stored receipt how far it has come (`ReceiptState`). What follows from a finish stands in one table,
`FINISH_RULES`: whether the request was answered, whether anything is charged, and what the HTTP
APIs call it. The states that a job passes before it ends are in `job_state`.
"""

from dataclasses import dataclass
from enum import StrEnum


class Finish(StrEnum):
    """How a job ended, as the receipt says it."""

    STOP = "stop"  # the model ended its answer, or a stop string did
    LENGTH = "length"  # the answer reached the request's limit or the model's context
    COMPLETE = "complete"  # an answer in one piece: embeddings, labels
    CANCELLED = "cancelled"  # the client had enough, or stopped listening
    FAILED = "failed"  # the node broke off
    REFUSED = "refused"  # the node never began


class LeaseState(StrEnum):
    """What became of a lease's hold."""

    OPEN = "open"  # funds held, no receipt settled
    SETTLED = "settled"  # captured
    RELEASED = "released"  # voided: refused, never opened, or delivered nothing
    EXPIRED = "expired"  # no receipt in time


class ReceiptState(StrEnum):
    """How far a receipt has come. It is durable in each of them."""

    PENDING = "pending"  # from the node, without the client's word so far
    SETTLED = "settled"
    DISPUTED = "disputed"


@dataclass(frozen=True, slots=True)
class FinishRule:
    """What follows from a finish. `is_answer`: the client got all that it asked for; `is_fault`:
    the node did not do what the lease says, for whatever reason; `charges_input_alone`: the input
    is paid although no output came; `api_reason` is OpenAI's `finish_reason`, None where an API
    answers with an error instead."""

    is_answer: bool
    is_fault: bool
    charges_output: bool
    charges_input_alone: bool
    api_reason: str | None


FINISH_RULES = {
    Finish.STOP: FinishRule(True, False, True, True, "stop"),
    Finish.LENGTH: FinishRule(True, False, True, True, "length"),
    Finish.COMPLETE: FinishRule(True, False, True, True, "stop"),
    Finish.CANCELLED: FinishRule(False, False, True, True, None),
    Finish.FAILED: FinishRule(False, True, True, False, None),
    Finish.REFUSED: FinishRule(False, True, False, False, None),
}

# OpenAI's words, of the finishes that are answers.
API_FINISH_REASONS = {
    finish: rule.api_reason for finish, rule in FINISH_RULES.items() if rule.api_reason is not None
}
