"""What an HTTP user is told when something goes wrong: one table from wire codes to answers.

The body is OpenAI's error object on every path. What a user can act on is passed on in the words
of whoever refused; what happened between nodes and coordinators is told in words of our own, so
that no node writes into our users' logs, and no bug of ours shows its insides.
"""

import json
from dataclasses import dataclass

from coordinator.errors import CoordinatorError
from coordinator.gateway.responses import Headers, Response, header
from protocol.errors import Code
from protocol.money import divide_up


@dataclass(frozen=True, slots=True)
class Answer:
    """How one wire code looks over HTTP.

    `code` is OpenAI's name where it has one that programs match on. `should_retry` is for the stock
    clients, which send a POST again on 408, 409, 429 and 5xx unless told otherwise. `words` replace
    the message; None passes it on.
    """

    status: int
    kind: str
    should_retry: bool
    words: str | None = None
    code: str | None = None
    param: str | None = None


# OpenAI's names of types; 402 and 504 have none there.
_REQUEST = "invalid_request_error"
_AUTHENTICATION = "authentication_error"
_PERMISSION = "permission_error"
_FUNDS = "insufficient_quota"
_RATE = "rate_limit_error"
_SERVER = "server_error"
_UNAVAILABLE = "service_unavailable_error"
_TIMEOUT = "timeout_error"

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
        ),
        Answer(502, _SERVER, False, _BROKEN_NODE),
    ),
    # Our own request was too old, too new or sent twice: a clock that is off, or a bug.
    **dict.fromkeys(
        (Code.EXPIRED, Code.NOT_YET_VALID, Code.REPLAYED),
        Answer(500, _SERVER, False, _BROKEN_MARKET),
    ),
    Code.UNKNOWN_MODEL: Answer(404, _REQUEST, False, code="model_not_found", param="model"),
    # Only with a retry_after does waiting help; `error_of` sees to that.
    Code.NO_NODE_FITS: Answer(503, _UNAVAILABLE, False),
    Code.OUT_OF_FUNDS: Answer(402, _FUNDS, False),
    Code.BUDGET_EXCEEDED: Answer(402, _FUNDS, False),
    Code.UNKNOWN_ACCOUNT: Answer(403, _PERMISSION, False),
    Code.UNKNOWN_API_KEY: Answer(401, _AUTHENTICATION, False, code="invalid_api_key"),
    Code.RATE_LIMITED: Answer(429, _RATE, True, code="rate_limit_exceeded"),
    Code.ALREADY_EXISTS: Answer(409, _REQUEST, False),
    Code.NOT_FOUND: Answer(404, _REQUEST, False),
    Code.INVALID_INPUT: Answer(400, _REQUEST, False),
    Code.PROMPT_TOO_LONG: Answer(400, _REQUEST, False, code="context_length_exceeded"),
    Code.INPUT_TOO_LARGE: Answer(413, _REQUEST, False),
    Code.INVALID_IMAGE: Answer(400, _REQUEST, False, param="image"),
    Code.IMAGE_TOO_LARGE: Answer(413, _REQUEST, False, param="image"),
    Code.BUSY: Answer(429, _RATE, True, "every node that fits is busy: try again shortly"),
    Code.DRAINING: Answer(503, _UNAVAILABLE, True, "the node is about to stop: try again"),
    Code.ISOLATION_UNAVAILABLE: Answer(
        503, _UNAVAILABLE, True, "the node cannot isolate jobs any more: try again"
    ),
    Code.MODEL_UNAVAILABLE: Answer(
        503, _UNAVAILABLE, True, "the node has stopped serving this model: try again"
    ),
    Code.WORKER_CRASHED: Answer(502, _SERVER, True, "the node's worker crashed: try again"),
    Code.WORKER_HUNG: Answer(502, _SERVER, True, "the node's worker hung: try again"),
    Code.OUT_OF_MEMORY: Answer(503, _UNAVAILABLE, True, "the node ran out of memory: try again"),
    Code.DEADLINE_EXCEEDED: Answer(504, _TIMEOUT, False, "there was no answer in time"),
    Code.CANCELLED: Answer(503, _UNAVAILABLE, True, "the node cancelled the job: try again"),
    Code.NODE_LOST: Answer(502, _SERVER, True, "the connection to the node was lost: try again"),
    Code.COORDINATOR_LOST: Answer(
        503, _UNAVAILABLE, True, "the market cannot be reached: try again"
    ),
    Code.STORAGE_FULL: Answer(
        503, _UNAVAILABLE, False, "the market cannot take jobs: its disk is full"
    ),
    Code.INTERNAL: Answer(500, _SERVER, False, "something failed that should not: it was reported"),
}

# A client waits this long before it asks a busy market again, if nobody knows better.
RETRY_AFTER_MS = 1_000


class ApiError(CoordinatorError):
    """A refusal or failure as an HTTP user sees it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = _REQUEST,
        api_code: str | None = None,
        param: str | None = None,
        retry_after_ms: int | None = None,
        should_retry: bool = False,
        headers: Headers = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.api_code = api_code
        self.param = param
        self.retry_after_ms = retry_after_ms
        self.should_retry = should_retry
        self.headers = headers

    def body(self) -> bytes:
        """OpenAI's object; all four keys are always there."""
        error = {
            "message": str(self),
            "type": self.kind,
            "param": self.param,
            "code": self.api_code,
        }
        return json.dumps({"error": error}).encode()

    def to_response(self) -> Response:
        headers = [*self.headers, header("x-should-retry", str(self.should_retry).lower())]
        if self.retry_after_ms is not None:
            headers.append(header("retry-after", divide_up(self.retry_after_ms, 1_000)))
            headers.append(header("retry-after-ms", self.retry_after_ms))
        return Response(self.status, self.body(), headers=tuple(headers))


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
    is_about_input = code in (Code.INVALID_INPUT, Code.PROMPT_TOO_LONG, Code.INPUT_TOO_LARGE)
    return ApiError(
        answer.status,
        message if answer.words is None else answer.words,
        kind=answer.kind,
        api_code=answer.code or code.value,
        param=input_param if is_about_input else answer.param,
        retry_after_ms=retry_after_ms,
        should_retry=should_retry and not is_billed,
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


def invalid(message: str, param: str | None, *, api_code: str = "invalid_value") -> ApiError:
    """400: the request says something that it may not say; `param` names where."""
    return ApiError(400, message, api_code=api_code, param=param)


def unsupported(message: str, param: str) -> ApiError:
    """400: a parameter that would change the answer, and that we cannot honour."""
    return invalid(message, param, api_code="unsupported_parameter")
