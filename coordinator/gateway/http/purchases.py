"""The one way to answer a request that buys something: through `kept`, so that every route keeps
its word to clients that send a request again or hang up."""

from collections.abc import Awaitable, Callable

from coordinator.gateway.errors import ApiError, Headers
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.dialect import Dialect, problem_response
from coordinator.gateway.http.kept.keeper import Purchaser
from coordinator.gateway.http.kept.partial import partial_body
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, WithHeaders, header


async def serve_purchase(
    context: GatewayContext,
    request: Request,
    dialect: Dialect,
    produce: Callable[[], Awaitable[Reply]],
    *,
    is_streamed: bool = False,
    is_job: bool = True,
) -> Reply:
    """`produce` buys and makes the reply; it may be left out, or go on without this client. A reply
    to a job names it, as its generation. Raises ApiError."""
    assert request.caller is not None, "purchases are for callers only"

    def headers() -> Headers:
        return (header("x-generation-id", request.job_id),) if is_job else ()

    async def named() -> Reply:
        try:
            reply = await produce()
            return WithHeaders(reply, headers())
        except ApiError as error:
            error = error.but(headers=(*error.problem.headers, *headers()))
            # What was paid for is an answer: the same request must not buy again.
            if not error.problem.is_charged:
                raise error from None
            return problem_response(error.problem, dialect)

    purchaser = Purchaser(
        request.caller.owner,
        request.name,
        request.body_digest,
        is_streamed,
        named,
        partial=lambda: partial_body(request.job_id, request.delivered),
    )
    return await context.keeper.serve(request, purchaser)
