"""One call as it comes in: who makes it, its place among all, and its errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog

from coordinator.buyer.job_name import JobName
from coordinator.errors import CoordinatorError
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError, api_error_of, error_of
from coordinator.gateway.grpc.statuses import Metadata, status_of, trailers_of
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.fair_places import Place
from coordinator.gateway.http.routing_params import (
    PROVIDER_HEADER,
    read_provider_header,
    with_provider,
)
from coordinator.gateway.http.strict_json import Fields
from protocol.errors import Code
from protocol.payload import Chunk

log = structlog.get_logger(__name__)

_REQUEST_ID_BYTES = 12


@dataclass
class RpcCall:
    """`coordinator.gateway.http.jobs.Asked`, for gRPC."""

    request_id: str
    started_at: float
    caller: Caller | None
    place: Place
    metadata: dict[str, str]
    name: JobName
    delivered: dict[int, list[Chunk]] = field(default_factory=dict)
    has_place: bool = True
    # Of `ResendableRequest`: clients of gRPC do not count their tries.
    retry_count: None = None
    is_asked_to_keep: bool = False

    @property
    def idempotency_key(self) -> str | None:
        return self.metadata.get("idempotency-key")

    def take_place(self) -> Place | None:
        """See `kept.keeper.ResendableRequest`."""
        had_place, self.has_place = self.has_place, False
        return self.place if had_place else None

    def leave_place(self) -> None:
        if self.take_place() is not None:
            self.place.leave()

    async def identify(self, context: GatewayContext) -> None:
        """The key may have been revoked since. Raises ApiError (401)."""
        self.caller = await context.callers.identify(self.metadata.get("authorization"))

    def routed(self, fields: Fields) -> Fields:
        """The fields with what the key and the metadata say of routing. Raises ApiError (400)."""
        key = self.caller.provider if self.caller is not None else {}
        session = self.metadata.get("x-session-id")
        named = {} if session is None else {"session": session}
        return with_provider(
            fields, key, named, read_provider_header(self.metadata.get(PROVIDER_HEADER))
        )


def metadata_of_call(rpc: Any) -> dict[str, str]:
    """The text metadata, by name. Of several values the first counts, as with headers."""
    found: dict[str, str] = {}
    for name, value in rpc.invocation_metadata() or ():
        if isinstance(value, str):
            found.setdefault(name, value)
    return found


@asynccontextmanager
async def admitted(context: GatewayContext, rpc: Any) -> AsyncIterator[RpcCall]:
    """Let a call in as HTTP does: by its key, within its rate, with a place among all."""
    metadata = metadata_of_call(rpc)
    started_at = context.monotonic()
    caller = await context.callers.identify(metadata.get("authorization"))
    if caller.requests_per_minute is not None:
        context.limits.take(caller.key_id, caller.requests_per_minute)
    place = context.places.enter(caller.owner)
    request_id = f"req_{context.runtime.entropy(_REQUEST_ID_BYTES).hex()}"
    call = RpcCall(request_id, started_at, caller, place, metadata, context.new_job_name())
    try:
        yield call
    finally:
        call.leave_place()


async def abort(rpc: Any, error: BaseException) -> None:
    """End a call with what became of it. Raises."""
    problem = problem_error(error).problem
    trailers: Metadata = trailers_of(problem)
    await rpc.abort(status_of(problem), problem.message, trailers)


def problem_error(error: BaseException) -> ApiError:
    """What the client is told of an error of ours, or of a bug."""
    if isinstance(error, CoordinatorError):
        return api_error_of(error)
    log.error("grpc_call_crashed", exc_info=error)
    return error_of(Code.INTERNAL, "")


class KeysFirst(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses calls without a good key before their message is read: it may have megabytes."""

    def __init__(self, context: GatewayContext, public: frozenset[str]) -> None:
        self._context = context
        self._public = public

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if details.method in self._public:
            return await continuation(details)
        metadata = dict(details.invocation_metadata or ())
        try:
            await self._context.callers.identify(metadata.get("authorization"))
        except CoordinatorError as error:
            return _refusal(error)
        return await continuation(details)


def _refusal(error: CoordinatorError) -> Any:
    """A handler for any call: one of a stream reads no message before it ends."""

    async def refuse(messages: Any, rpc: Any) -> None:
        await abort(rpc, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
