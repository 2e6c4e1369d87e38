"""GET /v1/models and /v1/models/{model}: what the offer book has, with our own fields beside
OpenAI's."""

from collections.abc import Sequence
from decimal import Decimal

from coordinator.gateway.errors import error_of
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.openai.shapes import Architecture, ModelObject, ModelsAnswer
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, json_response
from coordinator.gateway.market_side.market import GatewayMarket, ModelInfo
from coordinator.gateway.market_side.waiting import wait_model
from protocol.errors import Code
from protocol.features import Feature
from protocol.messages import Task
from protocol.money import NANO_PER_CREDIT
from protocol.pricing import PRICE_POSITIONS, PriceSheet, prices_of

_GENERATION = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")
_PARAMETERS_OF_FEATURES = {
    Feature.TOOLS: ("tools", "tool_choice", "parallel_tool_calls"),
    Feature.REASONING: ("reasoning", "include_reasoning"),
    Feature.STRUCTURED_OUTPUTS: ("response_format", "structured_outputs"),
    Feature.LOGPROBS: ("logprobs", "top_logprobs"),
    Feature.SAMPLING: (
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "min_tokens",
        "stop_token_ids",
    ),
    Feature.STOP_DETAILS: ("include_stop_str_in_output",),
}
_PARAMETERS_OF_TASKS = {
    Task.EMBEDDING: ("dimensions", "encoding_format"),
    Task.IMAGE_CLASSIFICATION: ("top_k",),
}


def _architecture(takes: str, gives: str) -> Architecture:
    return {
        "modality": f"{takes}->{gives}",
        "input_modalities": [takes],
        "output_modalities": [gives],
    }


_ARCHITECTURES = {
    Task.CAUSAL_LM: _architecture("text", "text"),
    Task.EMBEDDING: _architecture("text", "embeddings"),
    Task.IMAGE_CLASSIFICATION: _architecture("image", "labels"),
    Task.TENSOR: _architecture("tensors", "tensors"),
}


async def list_models(context: GatewayContext, request: Request) -> Reply:
    """All models that nodes offer now, with their prices."""
    models = await context.bridge.call(_all, context.market)
    answer: ModelsAnswer = {"object": "list", "data": [_to_plain(model) for model in models]}
    return json_response(answer)


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


def _to_plain(model: ModelInfo) -> ModelObject:
    context = model.context_tokens or None
    return {
        "id": model.name,
        "object": "model",
        "created": model.first_seen_s,
        "owned_by": "capacloud",
        "root": model.name,
        "parent": None,
        "max_model_len": context,
        "name": model.name,
        "context_length": context,
        "architecture": _ARCHITECTURES[model.task],
        "pricing": _pricing(model.price_from),
        "top_provider": {"context_length": context, "max_completion_tokens": None},
        "supported_parameters": supported_parameters(model),
        "task": model.task.value,
        "capabilities": sorted(model.features),
        "dimensions": model.dimensions or None,
        "quantization": model.quantization,
        "quantizations": list(model.quantizations or (model.quantization,)),
        "manifest_digest": model.digest,
        "nodes": model.nodes,
        "price_nano": {"from": prices_of(model.price_from), "to": prices_of(model.price_to)},
    }


def supported_parameters(model: ModelInfo) -> list[str]:
    """What requests for this model may say, in OpenRouter's words."""
    if model.task is not Task.CAUSAL_LM:
        return sorted(_PARAMETERS_OF_TASKS.get(model.task, ()))
    words = set(_GENERATION)
    for feature, names in _PARAMETERS_OF_FEATURES.items():
        if feature in model.features:
            words.update(names)
    return sorted(words)


def _pricing(price: PriceSheet) -> dict[str, str]:
    """Credits for one token, image or request, as decimal texts; of the cheapest node."""
    prices: dict[str, str] = {}
    for position in PRICE_POSITIONS:
        credits_each = Decimal(position.of(price)) / (NANO_PER_CREDIT * position.per)
        prices[position.cap_name] = f"{credits_each.normalize():f}"
    return prices
