"""GET /v1/generation: what became of a purchase, for the account that made it."""

from coordinator.gateway.errors import ApiError, Problem
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply
from coordinator.gateway.http.routes import Route
from protocol.ids import JobId, PeerId


async def read_content(context: GatewayContext, request: Request) -> Reply:
    """The answer that a client hung up on, for a while. Raises ApiError (404)."""
    found = await context.keeper.content(account_of(request), job_id_of(request))
    if found is None:
        raise ApiError(
            Problem(
                404,
                "there is no content of this generation: it was delivered, its time is over, or "
                "nothing of it was made",
                code="not_found",
            )
        )
    return found


def account_of(request: Request) -> PeerId:
    assert request.caller is not None, "these routes are for callers only"
    return request.caller.owner


def job_id_of(request: Request) -> JobId:
    """The id in the path; an answer's own id, such as `chatcmpl-…`, will do too."""
    return JobId(request.parameters["id"][:128].rpartition("-")[2])


ROUTES = (Route("GET", "/v1/generation/{id}/content", read_content, OPENAI),)
