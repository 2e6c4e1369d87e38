"""POST /v1/embeddings."""

import base64
import struct
from typing import Any

import pytest

from coordinator.buyer.errors import JobFailed
from protocol.errors import Code
from protocol.payload import EmbeddingInput
from tests.coordinator.gateway import fake_market
from tests.coordinator.gateway.fake_market import VECTOR, Script
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_chat import error_of

PATH = "/v1/embeddings"


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny-embedder", "input": ["a", "b"], **more}


def test_floats(gateway: Harness) -> None:
    response = gateway.post(PATH, body())
    answer = response.json()
    assert answer["object"] == "list"
    assert answer["data"] == [
        {"object": "embedding", "index": index, "embedding": list(VECTOR)} for index in (0, 1)
    ]
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7, "cost_nano": 140}
    assert response.headers["x-capacloud-amount-nano"] == "140"


def test_base64_is_little_endian_float32(gateway: Harness) -> None:
    answer = gateway.post(PATH, body(encoding_format="base64")).json()
    raw = base64.b64decode(answer["data"][1]["embedding"])
    assert struct.unpack(f"<{len(VECTOR)}f", raw) == VECTOR


def test_one_text_is_a_list_of_one(gateway: Harness) -> None:
    assert len(gateway.post(PATH, body(input="a")).json()["data"]) == 1
    assert gateway.market.specs[-1].job_input == EmbeddingInput(("a",))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input[0]"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [1, 2, 3]}, "input"),
        ({"input": [[1, 2], [3]]}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": ["a"] * 2_049}, "input"),
        ({"dimensions": 8}, "dimensions"),
        ({"dimensions": 2}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "3"}, "dimensions"),
        ({"normalize": 1}, "normalize"),
        ({"input_type": "query"}, "input_type"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_bad_input_is_refused_by_name(gateway: Harness, change: dict[str, Any], param: str) -> None:
    response = gateway.post(PATH, body(**change))
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert gateway.market.specs == []


def test_the_models_own_length_may_be_asked_for(gateway: Harness) -> None:
    response = gateway.post(PATH, body(dimensions=len(VECTOR), user="u"))
    assert len(response.json()["data"][0]["embedding"]) == len(VECTOR)


def test_a_length_that_nothing_is_known_of_is_refused(gateway: Harness) -> None:
    gateway.market.tells_dimensions = False
    error = error_of(gateway.post(PATH, body(dimensions=len(VECTOR))))
    assert error["param"] == "dimensions"
    assert "leave dimensions out" in error["message"]
    assert gateway.market.specs == []


def test_two_thousand_texts_are_one_job(gateway: Harness) -> None:
    response = gateway.post(PATH, body(input=["a"] * 2_048))
    assert len(response.json()["data"]) == 2_048
    assert len(gateway.market.specs) == 1


def test_vectors_need_not_have_length_one(gateway: Harness) -> None:
    gateway.post(PATH, body(normalize=False))
    assert gateway.market.specs[-1].job_input == EmbeddingInput(("a", "b"), normalize=False)


def test_token_ids_are_refused_with_the_cure(gateway: Harness) -> None:
    error = error_of(gateway.post(PATH, body(input=[[1, 2], [3]])))
    assert "check_embedding_ctx_length=False" in error["message"]


@pytest.mark.parametrize("damage", ["short", "count"])
def test_a_broken_answer_was_paid_and_is_not_asked_for_again(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    whole = fake_market.chunks_of

    def broken(script: Any, spec: Any) -> Any:
        chunks = list(whole(script, spec))
        return chunks[:1] if damage == "short" else whole(script, fewer(spec))

    def fewer(spec: Any) -> Any:
        object.__setattr__(spec, "job_input", EmbeddingInput(("a",)))
        return spec

    monkeypatch.setattr(fake_market, "chunks_of", broken)
    response = gateway.post(PATH, body())
    assert response.status_code == 502
    assert response.headers["x-should-retry"] == "false"


def test_a_text_that_is_too_long_is_the_users_to_shorten(gateway: Harness) -> None:
    failure = JobFailed("513 tokens", code=Code.PROMPT_TOO_LONG)
    gateway.market.script = Script(failure=failure)
    response = gateway.post(PATH, body())
    assert response.status_code == 400
    assert error_of(response)["param"] == "input"
