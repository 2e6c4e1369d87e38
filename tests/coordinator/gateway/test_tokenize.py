"""POST /v1/tokenize and /v1/detokenize."""

from typing import Any

import pytest

from protocol.features import Feature
from protocol.generation import ChatMessage, GenerationInput, Tool
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_chat import MESSAGES, asked, error_of

TOKENIZE, DETOKENIZE = "/v1/tokenize", "/v1/detokenize"


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny-chat", **more}


def test_the_tokens_of_a_text(gateway: Harness) -> None:
    answer = gateway.post("/tokenize", body(prompt="hö", return_token_strs=True)).json()
    assert answer == {
        "count": 3,
        "max_model_len": 2_048,
        "tokens": [0, 1, 2],
        "token_strs": ["h", "\ufffd", "\ufffd"],
    }
    assert asked(gateway) == GenerationInput(max_tokens=1, prompt="hö", tokenizes_only=True)
    spec = gateway.market.specs[-1]
    assert spec.constraints.features == ("tokenize",)
    assert spec.units_max.output_tokens == 0
    assert gateway.post(TOKENIZE, body(prompt="h")).json()["token_strs"] is None


def test_the_tokens_of_a_conversation(gateway: Harness) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    prefill = [*MESSAGES, {"role": "assistant", "content": "well"}]
    request = body(messages=prefill, tools=[tool], continue_final_message=True)
    assert gateway.post(TOKENIZE, request).json()["count"] == len("hiwell")
    assert asked(gateway) == GenerationInput(
        max_tokens=1,
        messages=(ChatMessage("user", "hi"), ChatMessage("assistant", "well")),
        tools=(Tool("f"),),
        continues_final_message=True,
        tokenizes_only=True,
    )


def test_a_text_longer_than_the_context_is_counted(gateway: Harness) -> None:
    answer = gateway.post(TOKENIZE, body(prompt="x" * 100_000)).json()
    assert answer["count"] == 100_000


def test_the_text_of_tokens(gateway: Harness) -> None:
    assert gateway.post("/detokenize", body(tokens=[5, 6])).json() == {"prompt": "ab\ufffdab\ufffd"}
    assert asked(gateway).prompt_tokens == (5, 6)


def test_a_model_that_cannot_is_told(gateway: Harness) -> None:
    gateway.market.features -= {Feature.TOKENIZE}
    for path, request in ((TOKENIZE, body(prompt="a")), (DETOKENIZE, body(tokens=[1]))):
        response = gateway.post(path, request)
        assert response.status_code == 400
        assert "does not support tokenize" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (TOKENIZE, {}, "prompt"),
        (TOKENIZE, {"prompt": ""}, "prompt"),
        (TOKENIZE, {"prompt": [1]}, "prompt"),
        (TOKENIZE, {"prompt": "a", "add_special_tokens": False}, "add_special_tokens"),
        (TOKENIZE, {"messages": []}, "messages"),
        (TOKENIZE, {"messages": MESSAGES, "add_generation_prompt": False}, "add_generation_prompt"),
        (TOKENIZE, {"text": "a"}, "text"),
        (DETOKENIZE, {}, "tokens"),
        (DETOKENIZE, {"tokens": []}, "tokens"),
        (DETOKENIZE, {"tokens": "a"}, "tokens"),
        (DETOKENIZE, {"tokens": [1, -1]}, "tokens[1]"),
        (DETOKENIZE, {"tokens": [2**31]}, "tokens[0]"),
    ],
)
def test_bad_input_is_refused_by_name(
    gateway: Harness, path: str, change: dict[str, Any], param: str
) -> None:
    response = gateway.post(path, body(**change))
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert gateway.market.specs == []
