"""What an HTTP user is told when something goes wrong: one table from wire codes to problems.

A `Problem` is the same for every API; a dialect writes it in its own shape and with its own names.
What a user can act on is passed on in the words of the party that refused; what happened between
nodes and coordinators is told in words of our own, so that no node writes into our users' logs, and
no bug of ours shows its insides.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from coordinator.errors import CoordinatorError
from protocol.errors import Code

Headers = tuple[tuple[bytes, bytes], ...]


class ProblemKind(Enum):
    """Which family of errors a problem belongs to; dialects have a name for each."""

    REQUEST = "request"
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    FUNDS = "funds"
    RATE = "rate"
    SERVER = "server"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Answer:
    """How one wire code looks over HTTP.

    `should_retry` is for the stock clients, which send a POST again on 408, 409, 429 and 5xx unless
    told otherwise. `words` replace the message; None passes it on. `param` is the field at fault,
    where that is the same on every route.
    """

    status: int
    kind: ProblemKind
    should_retry: bool
    words: str | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal or failure. `code` is a wire code, or a name of ours for what only HTTP knows;
    `param` names the field at fault; `is_charged` says that a part was delivered and is paid."""

    status: int
    message: str
    kind: ProblemKind = ProblemKind.REQUEST
    code: str = "invalid_value"
    param: str | None = None
    retry_after_ms: int | None = None
    should_retry: bool = False
    headers: Headers = ()
    is_charged: bool = False


class ApiError(CoordinatorError):
    """A problem on its way to the user. It does not change: `but` makes another."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self._problem = problem

    @property
    def problem(self) -> Problem:
        return self._problem

    def but(self, **changes: Any) -> "ApiError":
        """The same problem with some fields replaced."""
        return ApiError(replace(self._problem, **changes))


_BROKEN_NODE = "the node that ran this broke the protocol; it was reported"
_BROKEN_MARKET = "the market refused the gateway's own request; the operator was told"

ANSWERS: dict[Code, Answer] = {
    # A node's bytes or evidence were wrong, and so were those of every node tried after it.
    **dict.fromkeys(
        (
            Code.MALFORMED,
            Code.FRAME_TOO_LARGE,
            Code.TRUNCATED,
            Code.TRAILING_BYTES,
            Code.UNKNOWN_VERSION,
            Code.UNEXPECTED_FRAME,
            Code.BAD_SIGNATURE,
            Code.WRONG_SIGNER,
            Code.WRONG_AUDIENCE,
            Code.DIGEST_MISMATCH,
            Code.PRICE_MISMATCH,
            Code.UNTRUSTED_COORDINATOR,
            Code.RECEIPT_MISMATCH,
            Code.OFFER_REGRESSED,
            Code.OFFER_CONFLICT,
            Code.OFFER_IMPLAUSIBLE,
            Code.WRONG_TOPIC,
            Code.UNSIGNED,
            Code.EMPTY_OUTPUT,
        ),
        Answer(502, ProblemKind.SERVER, False, _BROKEN_NODE),
    ),
    # Our own request was too old, too new or sent twice: a clock that is off, or a bug.
    **dict.fromkeys(
        (Code.EXPIRED, Code.NOT_YET_VALID, Code.REPLAYED),
        Answer(500, ProblemKind.SERVER, False, _BROKEN_MARKET),
    ),
    Code.UNKNOWN_MODEL: Answer(404, ProblemKind.REQUEST, False, param="model"),
    # Only with a retry_after does waiting help; `error_of` sees to that.
    Code.NO_NODE_FITS: Answer(503, ProblemKind.UNAVAILABLE, False),
    Code.OUT_OF_FUNDS: Answer(402, ProblemKind.FUNDS, False),
    Code.BUDGET_EXCEEDED: Answer(402, ProblemKind.FUNDS, False),
    Code.UNKNOWN_ACCOUNT: Answer(403, ProblemKind.PERMISSION, False),
    Code.UNKNOWN_API_KEY: Answer(401, ProblemKind.AUTHENTICATION, False),
    Code.RATE_LIMITED: Answer(429, ProblemKind.RATE, True),
    Code.ALREADY_EXISTS: Answer(409, ProblemKind.REQUEST, False),
    Code.NOT_FOUND: Answer(404, ProblemKind.REQUEST, False),
    Code.INVALID_INPUT: Answer(400, ProblemKind.REQUEST, False),
    Code.PROMPT_TOO_LONG: Answer(400, ProblemKind.REQUEST, False),
    Code.INPUT_TOO_LARGE: Answer(413, ProblemKind.REQUEST, False),
    Code.INVALID_IMAGE: Answer(400, ProblemKind.REQUEST, False, param="image"),
    Code.IMAGE_TOO_LARGE: Answer(413, ProblemKind.REQUEST, False, param="image"),
    Code.POISON_INPUT: Answer(
        400, ProblemKind.REQUEST, False, "the input ends the model's process"
    ),
    Code.BUSY: Answer(
        429, ProblemKind.RATE, True, "every node that fits is busy: try again shortly"
    ),
    Code.DRAINING: Answer(
        503, ProblemKind.UNAVAILABLE, True, "the node is about to stop: try again"
    ),
    Code.ISOLATION_UNAVAILABLE: Answer(
        503, ProblemKind.UNAVAILABLE, True, "the node cannot isolate jobs any more: try again"
    ),
    Code.MODEL_UNAVAILABLE: Answer(
        503, ProblemKind.UNAVAILABLE, True, "the node has stopped serving this model: try again"
    ),
    Code.WORKER_CRASHED: Answer(
        502, ProblemKind.SERVER, True, "the node's worker crashed: try again"
    ),
    Code.WORKER_HUNG: Answer(502, ProblemKind.SERVER, True, "the node's worker hung: try again"),
    Code.OUT_OF_MEMORY: Answer(
        503, ProblemKind.UNAVAILABLE, True, "the node ran out of memory: try again"
    ),
    Code.DEADLINE_EXCEEDED: Answer(504, ProblemKind.TIMEOUT, False, "there was no answer in time"),
    Code.CANCELLED: Answer(
        503, ProblemKind.UNAVAILABLE, True, "the node cancelled the job: try again"
    ),
    Code.NODE_LOST: Answer(
        502, ProblemKind.SERVER, True, "the connection to the node was lost: try again"
    ),
    Code.COORDINATOR_LOST: Answer(
        503, ProblemKind.UNAVAILABLE, True, "the market cannot be reached: try again"
    ),
    Code.STORAGE_FULL: Answer(
        503, ProblemKind.UNAVAILABLE, False, "the market cannot take jobs: its disk is full"
    ),
    # A stream sends the rows and goes on; nothing else asks for what a node keeps.
    Code.STATE_MISSING: Answer(
        503, ProblemKind.UNAVAILABLE, True, "the node lost what the job goes on from: try again"
    ),
    Code.INTERNAL: Answer(
        500, ProblemKind.SERVER, False, "something failed that should not: it was reported"
    ),
}

# A client waits this long before it asks a busy market again, if the market does not say.
RETRY_AFTER_MS = 1_000

_ABOUT_INPUT = (Code.INVALID_INPUT, Code.PROMPT_TOO_LONG, Code.INPUT_TOO_LARGE)


def error_of(
    code: Code,
    message: str,
    *,
    retry_after_ms: int | None = None,
    is_billed: bool = False,
    input_param: str | None = None,
) -> ApiError:
    """The HTTP form of a wire code. `is_billed` says that a part was delivered and paid, so that
    sending the request again would pay twice; `input_param` is where this route has its input."""
    answer = answer_to(code)
    should_retry = answer.should_retry or retry_after_ms is not None
    if should_retry and answer.status == 429 and retry_after_ms is None:
        retry_after_ms = RETRY_AFTER_MS
    return ApiError(
        Problem(
            answer.status,
            message if answer.words is None else answer.words,
            kind=answer.kind,
            code=code.value,
            param=input_param if code in _ABOUT_INPUT else answer.param,
            retry_after_ms=retry_after_ms,
            should_retry=should_retry and not is_billed,
            is_charged=is_billed,
        )
    )


def answer_to(code: Code) -> Answer:
    """What HTTP says for a wire code; one of a later version is the market's own failure."""
    return ANSWERS.get(code, ANSWERS[Code.INTERNAL])


def api_error_of(error: CoordinatorError) -> ApiError:
    """The HTTP form of any error of ours. Only those that were written for users are passed on:
    others may name a file or a statement."""
    if isinstance(error, ApiError):
        return error
    code = error.code if answer_to(error.code).words is not None else Code.INTERNAL
    return error_of(code, "")


def invalid(message: str, param: str | None, *, code: str = "invalid_value") -> ApiError:
    """400: the request says something that it may not say; `param` names where."""
    return ApiError(Problem(400, message, code=code, param=param))


def unsupported(message: str, param: str) -> ApiError:
    """400: a parameter that would change the answer, and that we cannot honour."""
    return invalid(message, param, code="unsupported_parameter")
