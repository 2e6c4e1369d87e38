"""POST /v1/rerank and /v2/rerank."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from protocol.features import Feature
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


@pytest.fixture
def scorer(gateway: Harness) -> Harness:
    """The embedder is a cross-encoder."""
    gateway.market.scores_pairs = True
    gateway.market.script = Script(vectors=((0.25,), (0.75,), (0.0,), (0.75,)))
    return gateway


def test_a_cross_encoder_reads_each_document_with_the_query(scorer: Harness) -> None:
    answer = scorer.post("/v1/rerank", body()).json()
    assert [(r["index"], r["relevance_score"]) for r in answer["results"]] == [
        (1, 0.75),
        (3, 0.75),
        (0, 0.25),
        (2, 0.0),
    ]
    (spec,) = scorer.market.specs
    assert spec.job_input == EmbeddingInput(("a", "b", "c", "d"), query="q")
    assert spec.constraints.features == (Feature.PAIR_SCORES,)


def test_a_cross_encoder_embeds_nothing(scorer: Harness) -> None:
    response = scorer.post("/v1/embeddings", {"model": "tiny-embedder", "input": "a"})
    assert response.status_code == 400
    assert error_of(response)["code"] == "wrong_task"
    assert "/v1/rerank" in error_of(response)["message"]


@pytest.mark.parametrize("vectors", [((0.5, 0.5),) * 4, ((0.5,),) * 3, ((math.nan,),) * 4])
def test_what_is_no_score_is_the_nodes_mistake(
    scorer: Harness, vectors: Sequence[tuple[float, ...]]
) -> None:
    scorer.market.script = Script(vectors=vectors)
    assert scorer.post("/v1/rerank", body()).status_code == 502


def test_vectors_of_no_numbers_are_the_nodes_mistake(gateway: Harness) -> None:
    gateway.market.script = Script(vectors=((math.inf, 0.0, 0.0),) * 5)
    assert gateway.post("/v1/rerank", body()).status_code == 502
    gateway.market.script = Script(vectors=((math.nan, 0.0, 0.0),))
    asked = {"model": "tiny-embedder", "input": "a"}
    assert gateway.post("/v1/embeddings", asked).status_code == 502
