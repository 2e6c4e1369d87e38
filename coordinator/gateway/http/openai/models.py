"""GET /v1/models and /v1/models/{model}: what the offer book has, with our own fields beside
OpenAI's."""

from collections.abc import Sequence

from coordinator.gateway.errors import error_of
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, json_response
from coordinator.gateway.market_side.market import GatewayMarket, ModelInfo
from coordinator.gateway.market_side.waiting import wait_model
from protocol.errors import Code
from protocol.pricing import prices_of


async def list_models(context: GatewayContext, request: Request) -> Reply:
    """All models that nodes offer now, with their prices."""
    models = await context.bridge.call(_all, context.market)
    return json_response({"object": "list", "data": [_to_plain(model) for model in models]})


async def retrieve_model(context: GatewayContext, request: Request) -> Reply:
    """One of them."""
    name = request.parameters["model"]
    model = await context.bridge.call(_one, context.market, name)
    if model is None:
        raise error_of(Code.UNKNOWN_MODEL, f"no node offers {name[:128]!r} now")
    return json_response(_to_plain(model))


# In trio, through the bridge.


async def _all(market: GatewayMarket) -> Sequence[ModelInfo]:
    return market.models()


async def _one(market: GatewayMarket, name: str) -> ModelInfo | None:
    return await wait_model(market, name, within_s=0)


def _to_plain(model: ModelInfo) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.first_seen_s,
        "owned_by": "capacloud",
        "max_model_len": model.context_tokens or None,
        "task": model.task.value,
        "quantization": model.quantization,
        "manifest_digest": model.digest,
        "nodes": model.nodes,
        "price_nano": {"from": prices_of(model.price_from), "to": prices_of(model.price_to)},
    }
