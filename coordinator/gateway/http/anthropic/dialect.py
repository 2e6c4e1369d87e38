"""Anthropic's shapes: the error object and how a stream breaks."""

from coordinator.gateway.errors import Headers, Problem, ProblemKind
from coordinator.gateway.http.event_text import event_json, named_event
from protocol.errors import Code

_TYPES = {
    ProblemKind.REQUEST: "invalid_request_error",
    ProblemKind.AUTHENTICATION: "authentication_error",
    ProblemKind.PERMISSION: "permission_error",
    ProblemKind.FUNDS: "billing_error",
    ProblemKind.RATE: "rate_limit_error",
    ProblemKind.SERVER: "api_error",
    ProblemKind.UNAVAILABLE: "overloaded_error",
    ProblemKind.TIMEOUT: "timeout_error",
}
# Where the status says more than the kind.
_TYPES_BY_STATUS = {404: "not_found_error", 413: "request_too_large"}

_OVERLOADED = 529

# Anthropic's clients go on without a thread where this is what refuses one.
NO_THREADS = "thread_unsupported_request"


class AnthropicDialect:
    stream_headers: Headers = (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache, no-transform"),
        (b"x-accel-buffering", b"no"),
    )
    keepalive = named_event("ping", {"type": "ping"})
    request_id_header = b"request-id"

    def status_of(self, problem: Problem) -> int:
        return _OVERLOADED if problem.status == 503 else problem.status

    def error_body(self, problem: Problem) -> bytes:
        return event_json(_error(problem)).encode()

    def error_event(self, problem: Problem) -> bytes:
        return named_event("error", _error(problem))


def _error(problem: Problem) -> dict[str, object]:
    kind = _TYPES_BY_STATUS.get(problem.status, _TYPES[problem.kind])
    message = problem.message
    if problem.code == Code.PROMPT_TOO_LONG.value:
        # Agents look for these words before they shorten a conversation.
        message = f"prompt is too long: {message}"
    error: dict[str, object] = {"type": kind, "message": message}
    if problem.code == NO_THREADS:
        error["details"] = {"error_code": NO_THREADS, "unsupported": ["thread"]}
    return {"type": "error", "error": error}


ANTHROPIC = AnthropicDialect()
