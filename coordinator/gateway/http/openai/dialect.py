"""OpenAI's shapes: the error object and the event stream."""

import json

from coordinator.gateway.errors import Headers, Problem, ProblemKind
from coordinator.gateway.http.responses import REQUEST_ID

# 402 and 504 have no type at OpenAI.
_TYPES = {
    ProblemKind.REQUEST: "invalid_request_error",
    ProblemKind.AUTHENTICATION: "authentication_error",
    ProblemKind.PERMISSION: "permission_error",
    ProblemKind.FUNDS: "insufficient_quota",
    ProblemKind.RATE: "rate_limit_error",
    ProblemKind.SERVER: "server_error",
    ProblemKind.UNAVAILABLE: "service_unavailable_error",
    ProblemKind.TIMEOUT: "timeout_error",
}

# OpenAI's names of codes that programs match on; the others are ours.
_CODES = {
    "unknown_model": "model_not_found",
    "unknown_api_key": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "prompt_too_long": "context_length_exceeded",
}


def error_object(problem: Problem) -> dict[str, str | None]:
    """All four keys are always there."""
    return {
        "message": problem.message,
        "type": _TYPES[problem.kind],
        "param": problem.param,
        "code": _CODES.get(problem.code, problem.code),
    }


class OpenAIDialect:
    # Disable caching, compression and proxy buffering for event streams.
    stream_headers: Headers = (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache, no-transform"),
        (b"x-accel-buffering", b"no"),
    )
    # A comment: clients ignore it.
    keepalive = b": keepalive\n\n"
    request_id_header = REQUEST_ID

    def status_of(self, problem: Problem) -> int:
        return problem.status

    def error_body(self, problem: Problem) -> bytes:
        return json.dumps({"error": error_object(problem)}).encode()

    def error_event(self, problem: Problem) -> bytes:
        """Without [DONE] after it: nothing was done."""
        return b"data: " + self.error_body(problem) + b"\n\n"


OPENAI = OpenAIDialect()
