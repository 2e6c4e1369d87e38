"""GET /openapi.json: for people and for programs that make clients, without a key."""

from typing import Any

from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.openapi.document import make_document
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, Response, to_json
from coordinator.gateway.http.routes import AnswerShape, Route


def with_description(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    """The routes, and one that describes them and itself."""
    known: list[bytes] = []

    async def describe(context: GatewayContext, request: Request) -> Reply:
        """This description (OpenAPI 3.1)."""
        if not known:
            known.append(to_json(make_document(described, context.config)))
        return Response(200, known[0])

    answer = AnswerShape(dict[str, Any])
    itself = Route("GET", "/openapi.json", describe, OPENAI, is_public=True, answer=answer)
    described = (*routes, itself)
    return described
