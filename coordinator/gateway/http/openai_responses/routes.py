"""The routes of the Responses API."""

from coordinator.gateway.errors import ApiError, Problem
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.openai_responses.answers import read_response
from coordinator.gateway.http.openai_responses.dialect import RESPONSES
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply
from coordinator.gateway.http.routes import JobRoute, Route
from protocol.messages import Task

JOB_ROUTES = (JobRoute("/v1/responses", Task.CAUSAL_LM, RESPONSES, read_response),)

_ONE = "/v1/responses/{response_id}"


async def _refuse_stored(context: GatewayContext, request: Request) -> Reply:
    """Always 404: responses are not stored. Raises ApiError."""
    name = request.parameters["response_id"][:128]
    raise ApiError(
        Problem(
            404,
            f"there is no response {name!r}: responses are not stored here; keep what the request "
            "answered, and send the conversation as input",
            code="not_found",
            param="response_id",
        )
    )


ROUTES = (
    *(route.to_route() for route in JOB_ROUTES),
    Route("GET", _ONE, _refuse_stored, RESPONSES),
    Route("DELETE", _ONE, _refuse_stored, RESPONSES),
    Route("POST", f"{_ONE}/cancel", _refuse_stored, RESPONSES),
    Route("GET", f"{_ONE}/input_items", _refuse_stored, RESPONSES),
)
