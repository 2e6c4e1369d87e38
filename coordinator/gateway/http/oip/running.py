"""One inference from request to answer: the model is looked up, its jobs are bought, and their
answers become tensors. Every door for tensors comes through here."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from coordinator.gateway.errors import ApiError, Headers, invalid
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.jobs import Asked, finish_jobs, finished_headers
from coordinator.gateway.http.strict_json import Fields, parse_object
from coordinator.gateway.inference.answers import answer_of
from coordinator.gateway.inference.messages import InferenceAnswer, InferenceRequest
from coordinator.gateway.inference.models import pinned_model
from coordinator.gateway.inference.orders import orders_of
from coordinator.gateway.market_side.market import GatewayMarket, ModelInfo
from coordinator.gateway.market_side.running import WholeAnswer
from coordinator.gateway.market_side.waiting import wait_model
from coordinator.gateway.orders import Routing

# A node's output of this size takes milliseconds to check and to write.
_LARGE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class FinishedInference:
    """`headers` say where it ran and what it cost."""

    answer: InferenceAnswer
    headers: Headers


async def find_model(context: GatewayContext, name: str) -> ModelInfo | None:
    """What is offered under a name; waits for one that is expected. Raises ApiError (503)."""
    within_s = context.config.model_within_s
    return await context.bridge.call(_wait_model, context.market, name, within_s)


def routing_fields(request: InferenceRequest) -> Fields:
    """The request's routing, as fields of the other APIs: parameters are flat, so that `provider`
    is a JSON text in them. Raises ApiError (400)."""
    values: dict[str, Any] = {"model": request.model}
    provider = request.parameters.get("provider")
    if isinstance(provider, str):
        try:
            provider = parse_object(provider.encode())
        except ApiError as error:
            message = str(error).replace("the body", "parameters.provider")
            raise error.but(message=message, param="parameters.provider") from None
    if provider is not None:
        values["provider"] = provider
    session = request.parameters.get("session")
    if session is not None:
        if not isinstance(session, str):
            raise invalid("parameters.session must be text", "parameters.session")
        values["session_id"] = session
    return Fields(values)


async def run_inference(
    context: GatewayContext, asked: Asked, request: InferenceRequest, routing: Routing
) -> FinishedInference:
    """Raises ApiError."""
    model, routing = await settle_model(context, request, routing)
    orders = orders_of(request, routing, model)
    answers = await finish_jobs(context, asked, orders)
    whole = _all_of(answers)
    size = sum(len(chunk.data) for answer in whole for chunk in answer.chunks)
    arguments = (request, model, whole)
    if size > _LARGE_BYTES:
        answer = await asyncio.to_thread(answer_of, *arguments)
    else:
        answer = answer_of(*arguments)
    return FinishedInference(answer, finished_headers(context, asked, answers))


async def settle_model(
    context: GatewayContext, request: InferenceRequest, routing: Routing
) -> tuple[ModelInfo, Routing]:
    """What the request names, and where it goes. Raises ApiError (404, 503)."""
    found = await find_model(context, routing.model)
    model, named = pinned_model(found, routing.model, request.version)
    return model, replace(routing, model=named)


def _all_of(answers: Sequence[WholeAnswer | ApiError]) -> list[WholeAnswer]:
    """Raises the first ApiError: an answer without one of its rows is none."""
    whole: list[WholeAnswer] = []
    for answer in answers:
        if isinstance(answer, ApiError):
            raise answer
        whole.append(answer)
    return whole


# In trio, through the bridge.


async def _wait_model(market: GatewayMarket, name: str, within_s: float) -> ModelInfo | None:
    return await wait_model(market, name, within_s=within_s)
