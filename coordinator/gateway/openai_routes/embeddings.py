"""POST /v1/embeddings. The stock client asks for base64 unless told otherwise: that is the node's
own float32 little-endian, which needs no conversion here."""

import base64
from typing import Any

import numpy as np

from coordinator.gateway.context import GatewayContext
from coordinator.gateway.errors import error_of, invalid, unsupported
from coordinator.gateway.jobs import finish_job, finished_headers
from coordinator.gateway.orders import EmbeddingOrder, check_text_size
from coordinator.gateway.requests import Request
from coordinator.gateway.responses import Reply, json_response
from coordinator.gateway.routing_params import read_routing
from coordinator.gateway.strict_json import Fields, check_text, read_list
from protocol.codec import decode
from protocol.errors import Code, RemoteProtocolError
from protocol.limits import EMBEDDING_TEXTS_MAX
from protocol.payload import EmbeddingInput, EmbeddingOutput

_FORMATS = {"float": False, "base64": True}


async def embeddings(context: GatewayContext, request: Request) -> Reply:
    fields = await context.read_json(request)
    order = read_order(fields)
    is_base64 = bool(fields.choice("encoding_format", _FORMATS))
    finished = await finish_job(context, request, order)
    output = _read_output(finished.data, len(order.job_input.texts))
    tokens = finished.outcome.units.input_tokens
    answer = {
        "object": "list",
        "model": order.routing.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": _encode(vector, is_base64)}
            for index, vector in enumerate(output.vectors)
        ],
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "cost_nano": finished.outcome.amount_nano,
        },
    }
    return json_response(answer, headers=finished_headers(context, request, finished))


def read_order(fields: Fields) -> EmbeddingOrder:
    """Raises ApiError (400, 413)."""
    if fields.raw("dimensions") is not None:
        raise unsupported("vectors have the model's own length: leave it out", "dimensions")
    return EmbeddingOrder(read_routing(fields), EmbeddingInput(_read_texts(fields)))


def _read_texts(fields: Fields) -> tuple[str, ...]:
    value = fields.required("input")
    items = [value] if isinstance(value, str) else value
    texts = read_list(items, "input", items_max=EMBEDDING_TEXTS_MAX, read=_read_text)
    if not texts:
        raise invalid("input is empty: there is nothing to embed", "input")
    check_text_size(sum(len(text.encode()) for text in texts), "input")
    return texts


def _read_text(value: Any, path: str) -> str:
    if isinstance(value, int | list):
        raise unsupported("token ids depend on a tokenizer: send text", "input")
    text = check_text(value, path)
    if not text:
        raise invalid(f"{path} is empty", path)
    return text


def _read_output(data: bytes, texts: int) -> EmbeddingOutput:
    """What the node sent. It has been paid for, so a broken answer is not asked for again."""
    try:
        output = decode(EmbeddingOutput, data)
    except RemoteProtocolError as error:
        raise error_of(error.code, str(error), is_billed=True) from error
    if len(output.vectors) != texts:
        raise error_of(Code.MALFORMED, "the node sent another number of vectors", is_billed=True)
    return output


def _encode(vector: bytes, is_base64: bool) -> str | list[float]:
    if is_base64:
        return base64.b64encode(vector).decode()
    floats: list[float] = np.frombuffer(vector, "<f4").tolist()
    return floats
