"""ModelInfer calls that may be sent again: with `idempotency-key` in the metadata they are kept as
HTTP's POSTs are, by the same keeper. A call without one is a purchase of its own, and ends with it.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from coordinator.gateway.errors import ApiError, Headers, Problem, ProblemKind
from coordinator.gateway.grpc.calls import RpcCall
from coordinator.gateway.grpc.statuses import Metadata, metadata_of
from coordinator.gateway.grpc.wire import MESSAGES
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.kept.keeper import REPLAYED, Purchaser
from coordinator.gateway.http.responses import Message, Reply, Response
from coordinator.gateway.http.routing_params import PROVIDER_HEADER

# What it is steered by beside its message.
_STEERING = (PROVIDER_HEADER, "x-session-id")

# A response of ModelInfer, and what is said beside it.
Answer = tuple[Any, Headers]


async def serve_kept(
    context: GatewayContext,
    call: RpcCall,
    message: Any,
    produce: Callable[[], Awaitable[Answer]],
) -> tuple[Any, Metadata]:
    """The response to an inference, made by `produce` or by an earlier call with the same key, and
    its trailing metadata. Raises ApiError."""
    if call.idempotency_key is None:
        response, headers = await produce()
        return response, metadata_of(headers)
    assert call.caller is not None, "purchases are for callers only"

    async def make_reply() -> Reply:
        try:
            response, headers = await produce()
        except ApiError as error:
            # What was paid for is an answer: the same call must not buy again.
            if not error.problem.is_charged:
                raise
            return _refusal(error.problem)
        return Response(200, response.SerializeToString(), headers=headers)

    purchaser = Purchaser(
        call.caller.owner,
        call.name,
        _digest_of(call, message),
        False,
        make_reply,
        partial=lambda: b"",
    )
    read = _Read()
    reply = await context.keeper.serve(call, purchaser)
    await reply.send_to(read.take, ())
    if read.status != 200:
        raise _error_of(read)
    response = MESSAGES["ModelInferResponse"].FromString(bytes(read.body))
    replayed = [header for header in read.headers if header in REPLAYED]
    told = tuple((name.decode(), value.decode()) for name, value in replayed)
    return response, (*metadata_of(read.headers), *told)


@dataclass
class _Read:
    """A reply, read to its end."""

    status: int = 0
    headers: Headers = ()
    body: bytearray = field(default_factory=bytearray)

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], tuple(message["headers"])
        else:
            self.body += message.get("body", b"")


def _digest_of(call: RpcCall, message: Any) -> bytes:
    """Of all that makes one call another one."""
    parts = [b"ModelInfer", *(call.metadata.get(name, "").encode() for name in _STEERING)]
    parts.append(message.SerializeToString(deterministic=True))
    found = hashlib.sha256()
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.digest()


def _refusal(problem: Problem) -> Response:
    content = {"message": problem.message, "code": problem.code, "kind": problem.kind.value}
    return Response(problem.status, json.dumps(content).encode(), headers=problem.headers)


def _error_of(read: _Read) -> ApiError:
    content = json.loads(read.body)
    return ApiError(
        Problem(
            read.status,
            content["message"],
            kind=ProblemKind(content["kind"]),
            code=content["code"],
            headers=read.headers,
            is_charged=True,
        )
    )
