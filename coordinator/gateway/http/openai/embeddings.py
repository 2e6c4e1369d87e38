"""POST /v1/embeddings. The stock client asks for base64 unless told otherwise: that is the node's
own float32 little-endian, which needs no conversion here."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from coordinator.gateway.errors import error_of, invalid, unsupported
from coordinator.gateway.http.dialect import ChoiceAnswer, only_answer
from coordinator.gateway.http.openai.names import ROUTING_WORDS, check_names
from coordinator.gateway.http.responses import to_json
from coordinator.gateway.http.routing_params import read_routing
from coordinator.gateway.http.strict_json import Fields, check_text, read_list
from coordinator.gateway.market_side.running import StartedAnswer
from coordinator.gateway.orders import PlainOrder, check_text_size
from protocol.codec import decode
from protocol.errors import Code, RemoteProtocolError
from protocol.limits import DIMENSIONS_MAX, EMBEDDING_TEXTS_MAX
from protocol.messages import Task
from protocol.payload import EmbeddingInput, EmbeddingOutput

_FORMATS = {"float": False, "base64": True}

EMBEDDING_WORDS = {
    **ROUTING_WORDS,
    "input": f"A text, or a list of up to {EMBEDDING_TEXTS_MAX:,}. Token ids are refused: each "
    "model has its own.",
    "encoding_format": "`float`, or `base64` of little-endian float32. Default `float`.",
    "dimensions": "The model's own number of dimensions; others are refused.",
    "normalize": "Whether vectors have length 1. Default true.",
}


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """A `JobCall` for vectors."""

    order: PlainOrder
    texts: int
    is_base64: bool
    is_streamed: bool = False

    @property
    def orders(self) -> tuple[PlainOrder]:
        return (self.order,)

    def answer(self, choices: Sequence[ChoiceAnswer], created_s: int) -> bytes:
        finished = only_answer(choices)
        output = read_output(finished.data, self.texts)
        tokens = finished.outcome.units.input_tokens
        cost_nano = finished.outcome.amount_nano
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "cost_nano": cost_nano}
        # One vector at a time: Python holds its lock while it writes a text.
        data = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, self._encode(vector))
            for index, vector in enumerate(output.vectors)
        )
        head = to_json({"object": "list", "model": finished.opened.model_name, "usage": usage})
        return b'%b,"data":[%b]}' % (head.removesuffix(b"}"), data)

    def writer(self, opened: StartedAnswer, created_s: int) -> NoReturn:
        raise AssertionError("vectors are not streamed")

    def _encode(self, vector: bytes) -> bytes:
        if self.is_base64:
            return b'"%b"' % base64.b64encode(vector)
        return to_json(np.frombuffer(vector, "<f4").tolist())


def read_embedding(fields: Fields) -> EmbeddingCall:
    """Raises ApiError (400, 413)."""
    check_names(fields, EMBEDDING_WORDS)
    routing = read_routing(fields)
    is_base64 = bool(fields.choice("encoding_format", _FORMATS))
    texts = _read_texts(fields)
    size = sum(len(text.encode()) for text in texts)
    check_text_size(size, "input")
    is_normal = fields.flag("normalize")
    job_input = EmbeddingInput(texts, normalize=True if is_normal is None else is_normal)
    dimensions = fields.integer("dimensions", low=1, high=DIMENSIONS_MAX)
    order = PlainOrder(Task.EMBEDDING, "input", routing, job_input, size, dimensions)
    return EmbeddingCall(order, len(texts), is_base64)


def _read_texts(fields: Fields) -> tuple[str, ...]:
    value = fields.required("input")
    items = [value] if isinstance(value, str) else value
    texts = read_list(items, "input", items_max=EMBEDDING_TEXTS_MAX, read=_read_text)
    if not texts:
        raise invalid("input is empty: there is nothing to embed", "input")
    return texts


def _read_text(value: Any, path: str) -> str:
    if isinstance(value, int | list):
        raise unsupported(
            "token ids mean something else to every model: send text (in LangChain, set "
            "check_embedding_ctx_length=False)",
            "input",
        )
    text = check_text(value, path)
    if not text:
        raise invalid(f"{path} is empty", path)
    return text


def read_output(data: bytes, *counts: int) -> EmbeddingOutput:
    """What the node sent: so many vectors as one of `counts`. It has been paid for, so a broken
    answer is not asked for again."""
    try:
        output = decode(EmbeddingOutput, data)
    except RemoteProtocolError as error:
        raise error_of(error.code, str(error), is_billed=True) from error
    if len(output.vectors) not in counts:
        raise error_of(Code.MALFORMED, "the node sent another number of vectors", is_billed=True)
    if not all(np.isfinite(np.frombuffer(vector, "<f4")).all() for vector in output.vectors):
        # JSON has no word for it, and no distance is one.
        raise error_of(Code.MALFORMED, "the node sent a vector of no numbers", is_billed=True)
    return output
