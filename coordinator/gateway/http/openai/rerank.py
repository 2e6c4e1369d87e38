"""POST /v1/rerank: documents in the order in which they answer a query, in the shapes of Jina,
Cohere and vLLM.

A cross-encoder reads each document together with the query and scores the pair from 0 to 1. Any
other embedding model reads them apart, which is cheaper and less exact: the score is then the
cosine of the two vectors, from -1 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from coordinator.gateway.errors import error_of, invalid, unsupported
from coordinator.gateway.http.dialect import ChoiceAnswer, only_answer
from coordinator.gateway.http.openai.embeddings import read_output
from coordinator.gateway.http.openai.names import NEUTRAL, ROUTING_WORDS, check_names
from coordinator.gateway.http.responses import to_json
from coordinator.gateway.http.routing_params import read_routing
from coordinator.gateway.http.strict_json import Fields, check_text, read_list
from coordinator.gateway.market_side.running import StartedAnswer
from coordinator.gateway.orders import PlainOrder, check_text_size
from protocol.errors import Code
from protocol.limits import EMBEDDING_TEXTS_MAX
from protocol.messages import Task
from protocol.payload import EmbeddingInput

Floats = np.ndarray[Any, np.dtype[np.float64]]

# The query is embedded with them, in one job.
DOCUMENTS_MAX = EMBEDDING_TEXTS_MAX - 1

_LENGTH_MIN = 1e-12

RERANK_WORDS = {
    **ROUTING_WORDS,
    "query": "What the documents are compared with.",
    "documents": f"Up to {DOCUMENTS_MAX:,} texts, or objects with a `text`.",
    "top_n": "Return so many of the likest. Default all.",
    "return_documents": "Whether results have their documents. Default true.",
}
_NEUTRAL = NEUTRAL | {
    "max_chunks_per_doc": (),
    "max_tokens_per_doc": (),
    "rank_fields": (["text"],),
}


@dataclass(frozen=True, slots=True)
class RerankCall:
    """A `JobCall` for an order of documents."""

    order: PlainOrder
    documents: tuple[str, ...]
    top_n: int
    returns_documents: bool
    is_streamed: bool = False

    @property
    def orders(self) -> tuple[PlainOrder]:
        return (self.order,)

    def answer(self, choices: Sequence[ChoiceAnswer], created_s: int) -> bytes:
        finished = only_answer(choices)
        scores = self._scores(finished.data)
        # Equals in the order that they were given.
        best = np.argsort(-scores, kind="stable")[: self.top_n]
        units, cost_nano = finished.outcome.units, finished.outcome.amount_nano
        tokens = units.input_tokens
        return to_json(
            {
                "id": f"rerank-{finished.opened.info.job_id}",
                "object": "list",
                "model": finished.opened.model_name,
                "results": [self._result(int(index), float(scores[index])) for index in best],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "cost_nano": cost_nano},
                "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": tokens}},
            }
        )

    def writer(self, opened: StartedAnswer, created_s: int) -> NoReturn:
        raise AssertionError("an order of documents is not streamed")

    def _scores(self, data: bytes) -> Floats:
        """One number a document is a cross-encoder's; a vector for each and the query are not."""
        count = len(self.documents)
        output = read_output(data, count, 1 + count)
        if len(output.vectors) > count:
            return _cosines(output.vectors)
        if output.dimensions != 1:
            raise error_of(
                Code.MALFORMED, "the node sent vectors where scores belong", is_billed=True
            )
        return np.frombuffer(b"".join(output.vectors), "<f4").astype(np.float64)

    def _result(self, index: int, score: float) -> dict[str, Any]:
        result: dict[str, Any] = {"index": index, "relevance_score": score}
        if self.returns_documents:
            result["document"] = {"text": self.documents[index]}
        return result


def read_rerank(fields: Fields) -> RerankCall:
    """Raises ApiError (400, 413)."""
    check_names(fields, RERANK_WORDS, neutral=_NEUTRAL)
    routing = read_routing(fields)
    query = _read_text(fields.required("query"), "query")
    documents = read_list(
        fields.required("documents"), "documents", items_max=DOCUMENTS_MAX, read=_read_document
    )
    if not documents:
        raise invalid("documents is empty: there is nothing to put in order", "documents")
    texts = (query, *documents)
    size = sum(len(text.encode()) for text in texts)
    check_text_size(size, "documents")
    order = PlainOrder(
        Task.EMBEDDING,
        "documents",
        routing,
        EmbeddingInput(texts),
        size,
        paired_input=EmbeddingInput(tuple(documents), query=query),
    )
    returns_documents = fields.flag("return_documents") is not False
    # Clients ask for the ten best of three documents.
    top_n = fields.integer("top_n", low=1, high=2**31) or len(documents)
    return RerankCall(order, documents, top_n, returns_documents)


def _read_document(value: Any, path: str) -> str:
    if isinstance(value, dict):
        document = Fields(value, path)
        return _read_text(document.required("text"), document.path("text"))
    return _read_text(value, path)


def _read_text(value: Any, path: str) -> str:
    if isinstance(value, list):
        raise unsupported(f"{path} must be one text", path)
    text = check_text(value, path)
    if not text:
        raise invalid(f"{path} is empty", path)
    return text


def _cosines(vectors: Sequence[bytes]) -> Floats:
    """Of the first vector with each other one."""
    numbers = np.stack([np.frombuffer(vector, "<f4") for vector in vectors]).astype(np.float64)
    lengths = np.linalg.norm(numbers, axis=1)
    products = numbers[1:] @ numbers[0]
    # A vector of zeros is like nothing.
    cosines: Floats = products / np.maximum(lengths[1:] * lengths[0], _LENGTH_MIN)
    return cosines.clip(-1.0, 1.0)
