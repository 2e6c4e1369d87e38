"""POST /v1/rerank and /v2/rerank."""

from typing import Any

import pytest

from protocol.payload import EmbeddingInput
from tests.coordinator.gateway.fake_market import Script
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_chat import error_of

# The query, and what is like it, unlike it, and next to it.
VECTORS = ((1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (-3.0, 0.0, 0.0), (1.0, 0.0, 1.0), (0.0, 0.0, 0.0))
DOCUMENTS = ["a", "b", {"text": "c"}, "d"]


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny-embedder", "query": "q", "documents": DOCUMENTS, **more}


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_come_in_the_order_of_their_cosine(gateway: Harness, path: str) -> None:
    gateway.market.script = Script(vectors=VECTORS)
    response = gateway.post(path, body())
    assert response.status_code == 200
    answer = response.json()
    assert [result["index"] for result in answer["results"]] == [2, 0, 3, 1]
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(
        [0.5**0.5, 0, 0, -1]
    )
    assert [result["document"]["text"] for result in answer["results"]] == ["c", "a", "d", "b"]
    assert answer["usage"]["total_tokens"] == 7
    assert answer["id"].startswith("rerank-")
    assert gateway.market.specs[-1].job_input == EmbeddingInput(("q", "a", "b", "c", "d"))


def test_only_the_best_are_returned(gateway: Harness) -> None:
    gateway.market.script = Script(vectors=VECTORS)
    answer = gateway.post("/v1/rerank", body(top_n=1, return_documents=False)).json()
    assert answer["results"] == [{"index": 2, "relevance_score": pytest.approx(0.5**0.5)}]
    assert len(gateway.post("/v1/rerank", body(top_n=99)).json()["results"]) == 4


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"query": None}, "query"),
        ({"query": ""}, "query"),
        ({"query": ["a"]}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"documents": [{"title": "a"}]}, "documents[0].text"),
        ({"documents": ["a"] * 2_048}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"max_tokens_per_doc": 5}, "max_tokens_per_doc"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"threshold": 0.5}, "threshold"),
    ],
)
def test_bad_input_is_refused_by_name(gateway: Harness, change: dict[str, Any], param: str) -> None:
    response = gateway.post("/v1/rerank", body(**change))
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert gateway.market.specs == []
