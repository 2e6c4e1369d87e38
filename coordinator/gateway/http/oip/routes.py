"""The routes of the Open Inference Protocol. Health and the server's description need no key."""

import asyncio
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version as package_version
from typing import Any

from coordinator.gateway.caller import Caller
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.oip.dialect import OIP
from coordinator.gateway.http.oip.reading import LENGTH_HEADER, ReadRequest, read_body
from coordinator.gateway.http.oip.running import routing_fields, run_inference
from coordinator.gateway.http.oip.shapes import (
    LiveAnswer,
    ModelMetadata,
    ModelReadyAnswer,
    ReadyAnswer,
    ServerAnswer,
    StatisticsAnswer,
)
from coordinator.gateway.http.oip.writing import metadata_plain, write_answer
from coordinator.gateway.http.purchases import serve_purchase
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, Response, json_response, to_json
from coordinator.gateway.http.routes import AnswerShape, Route
from coordinator.gateway.http.routing_params import read_routing, routed
from coordinator.gateway.inference.models import pinned_model, version_of
from coordinator.gateway.market_side.market import GatewayMarket, Health, ModelInfo
from coordinator.gateway.orders import Routing

SERVER_NAME = "capacloud"
EXTENSIONS = ("binary_tensor_data", "statistics")

# A body or an answer of this size takes milliseconds to read or to write.
_LARGE_BYTES = 64 * 1024


def server_metadata() -> ServerAnswer:
    return {
        "name": SERVER_NAME,
        "version": package_version(SERVER_NAME),
        "extensions": list(EXTENSIONS),
    }


async def _server(context: GatewayContext, request: Request) -> Reply:
    """Name, version and extensions of the server (Open Inference Protocol V2)."""
    return json_response(server_metadata())


async def _live(context: GatewayContext, request: Request) -> Reply:
    """200 as long as the gateway answers."""
    answer: LiveAnswer = {"live": True}
    return json_response(answer)


async def _ready(context: GatewayContext, request: Request) -> Reply:
    """200 if jobs can be taken, 503 if not."""
    is_ready = await look_ready(context)
    answer: ReadyAnswer = {"ready": is_ready}
    return Response(200 if is_ready else 503, to_json(answer))


async def look_ready(context: GatewayContext) -> bool:
    """Whether the market can take jobs."""
    health = await context.bridge.call(_health, context.market)
    return not health.reason


async def named_model(context: GatewayContext, name: str, version: str) -> ModelInfo:
    """Raises ApiError (404)."""
    found = await context.bridge.call(_model, context.market, name)
    model, _ = pinned_model(found, name, version)
    return model


async def _metadata(context: GatewayContext, request: Request) -> Reply:
    """A model's inputs and outputs. Raises ApiError (404)."""
    return json_response(metadata_plain(await _asked_model(context, request)))


async def _model_ready(context: GatewayContext, request: Request) -> Reply:
    """200 if a node offers the model and takes jobs, 503 if none does. Raises ApiError (404)."""
    model = await _asked_model(context, request)
    is_ready = model.nodes > 0
    answer: ModelReadyAnswer = {"name": model.name, "ready": is_ready}
    return Response(200 if is_ready else 503, to_json(answer))


async def _asked_model(context: GatewayContext, request: Request) -> ModelInfo:
    parameters = request.parameters
    return await named_model(context, parameters["model"], parameters.get("version", ""))


async def _statistics(context: GatewayContext, request: Request) -> Reply:
    """What the account's own jobs on the model came to since the gateway began. Raises ApiError
    (404)."""
    model = await _asked_model(context, request)
    assert request.caller is not None, "the route needs a key"
    return json_response(statistics_plain(context, request.caller, [model]))


async def _all_statistics(context: GatewayContext, request: Request) -> Reply:
    """The same of all models that are offered now."""
    models = await context.bridge.call(list_models, context.market)
    assert request.caller is not None, "the route needs a key"
    return json_response(statistics_plain(context, request.caller, models))


def statistics_plain(
    context: GatewayContext, caller: Caller, models: Iterable[ModelInfo]
) -> StatisticsAnswer:
    """Triton's `ModelStatisticsResponse`."""
    return {
        "model_stats": [
            {
                "name": model.name,
                "version": version_of(model),
                **context.uses.sum(caller.owner, (model.name, model.digest)).to_plain(),
            }
            for model in models
        ]
    }


async def _infer(context: GatewayContext, request: Request) -> Reply:
    """Run tensors, texts or pictures through a model: JSON, with raw tensors behind it where a
    header says how long it is. Raises ApiError, ClientGone."""
    body = await context.read_body(request)
    length = request.header(LENGTH_HEADER.encode())
    parameters = request.parameters

    def read() -> Any:
        return read_body(
            body, length, model=parameters["model"], version=parameters.get("version", "")
        )

    if len(body) > _LARGE_BYTES:
        async with context.parsing:
            asked = await asyncio.to_thread(read)
    else:
        asked = read()
    request.keep(sum(len(tensor.data) for tensor in asked.request.inputs))
    # The body may have taken a minute: the key may have been revoked meanwhile.
    await context.identify(request)
    routing = read_routing(routed(routing_fields(asked.request), request))
    return await serve_purchase(
        context, request, OIP, partial(_answer, context, request, asked, routing)
    )


async def _answer(
    context: GatewayContext, request: Request, asked: ReadRequest, routing: Routing
) -> Reply:
    """Raises ApiError."""
    finished = await run_inference(context, request, asked.request, routing)
    size = sum(len(tensor.data) for tensor in finished.answer.outputs)
    if size > _LARGE_BYTES:
        written = await asyncio.to_thread(write_answer, asked, finished.answer)
    else:
        written = write_answer(asked, finished.answer)
    return written.response(finished.headers)


_MODEL = "/v2/models/{model:path}"
_VERSION = _MODEL + "/versions/{version}"

_READY = AnswerShape(ReadyAnswer, statuses=(200, 503))
_MODEL_READY = AnswerShape(ModelReadyAnswer, statuses=(200, 503))
_METADATA = AnswerShape(ModelMetadata)
_STATISTICS = AnswerShape(StatisticsAnswer)
# JSON, or octets where raw tensors follow it.
_INFERENCE = AnswerShape(content_type="*/*")

ROUTES = (
    Route("GET", "/v2", _server, OIP, is_public=True, answer=AnswerShape(ServerAnswer)),
    Route("GET", "/v2/health/live", _live, OIP, is_public=True, answer=AnswerShape(LiveAnswer)),
    Route("GET", "/v2/health/ready", _ready, OIP, is_public=True, answer=_READY),
    # The longest first: a model's name may have slashes.
    Route("GET", "/v2/models/stats", _all_statistics, OIP, answer=_STATISTICS),
    Route("GET", _VERSION + "/stats", _statistics, OIP, answer=_STATISTICS),
    Route("POST", _VERSION + "/infer", _infer, OIP, answer=_INFERENCE),
    Route("GET", _VERSION + "/ready", _model_ready, OIP, answer=_MODEL_READY),
    Route("GET", _VERSION, _metadata, OIP, answer=_METADATA),
    Route("POST", _MODEL + "/infer", _infer, OIP, answer=_INFERENCE),
    Route("GET", _MODEL + "/stats", _statistics, OIP, answer=_STATISTICS),
    Route("GET", _MODEL + "/ready", _model_ready, OIP, answer=_MODEL_READY),
    Route("GET", _MODEL, _metadata, OIP, answer=_METADATA),
)


# In trio, through the bridge.


async def _health(market: GatewayMarket) -> Health:
    return market.health()


async def list_models(market: GatewayMarket) -> list[ModelInfo]:
    return list(market.models())


async def _model(market: GatewayMarket, name: str) -> ModelInfo | None:
    return market.model(name)
