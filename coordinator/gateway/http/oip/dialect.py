"""The protocol's errors: an object with one sentence. It has no streams over HTTP."""

import json

from coordinator.gateway.errors import Headers, Problem
from coordinator.gateway.http.responses import REQUEST_ID


class InferenceDialect:
    stream_headers: Headers = ()
    keepalive = b""
    request_id_header = REQUEST_ID

    def status_of(self, problem: Problem) -> int:
        return problem.status

    def error_body(self, problem: Problem) -> bytes:
        return json.dumps({"error": problem.message}).encode()

    def error_event(self, problem: Problem) -> bytes:
        raise AssertionError("nothing is streamed")


OIP = InferenceDialect()
