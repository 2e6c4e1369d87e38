"""The routes of the Responses API."""

from coordinator.gateway.errors import ApiError, Problem
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.openai_responses.answers import read_input_count, read_response
from coordinator.gateway.http.openai_responses.dialect import RESPONSES
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply
from coordinator.gateway.http.routes import JobRoute, Route
from protocol.messages import Task

JOB_ROUTES = (
    JobRoute("/v1/responses", Task.CAUSAL_LM, RESPONSES, read_response),
    JobRoute("/v1/responses/input_tokens", Task.CAUSAL_LM, RESPONSES, read_input_count),
)

_ONE = "/v1/responses/{response_id}"


async def _refuse_compacting(context: GatewayContext, request: Request) -> Reply:
    """Always 404: conversations are not compacted. Raises ApiError."""
    raise ApiError(
        Problem(
            404,
            "responses are not compacted here: send a shorter conversation as input",
            code="not_found",
        )
    )


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
    Route("POST", "/v1/responses/compact", _refuse_compacting, RESPONSES),
    Route("GET", _ONE, _refuse_stored, RESPONSES),
    Route("DELETE", _ONE, _refuse_stored, RESPONSES),
    Route("POST", f"{_ONE}/cancel", _refuse_stored, RESPONSES),
    Route("GET", f"{_ONE}/input_items", _refuse_stored, RESPONSES),
)
