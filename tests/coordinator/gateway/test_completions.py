"""POST /v1/completions."""

from typing import Any

import pytest

from protocol.generation import GenerationInput
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_chat import ANSWER, asked, error_of, events

PATH = "/v1/completions"


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny-chat", "prompt": "Once", **more}


def test_a_whole_answer(gateway: Harness) -> None:
    answer = gateway.post(PATH, body()).json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "text": ANSWER,
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert asked(gateway) == GenerationInput(max_tokens=16, prompt="Once")


def test_a_stream(gateway: Harness) -> None:
    stream = events(gateway.post(PATH, body(stream=True, stream_options={"include_usage": True})))
    assert stream[-1] == "[DONE]"
    assert stream[-2]["usage"]["completion_tokens"] == 5
    texts = [choice["text"] for event in stream[:-1] for choice in event["choices"]]
    assert "".join(texts) == ANSWER
    assert {event["object"] for event in stream[:-1]} == {"text_completion"}


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3]]])
def test_a_prompt_may_be_token_ids(gateway: Harness, prompt: list[Any]) -> None:
    assert gateway.post(PATH, body(prompt=prompt)).status_code == 200
    assert asked(gateway).prompt_tokens == (1, 2, 3)
    assert gateway.market.specs[-1].units_max.input_tokens >= 3


def test_a_list_of_one_text_is_a_text(gateway: Harness) -> None:
    gateway.post(PATH, body(prompt=["Once"]))
    assert asked(gateway).prompt == "Once"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": ["a"] * 17, "n": 8}, "n"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"echo": 1}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"tools": []}, "tools"),
    ],
)
def test_bad_input_is_refused_by_name(gateway: Harness, change: dict[str, Any], param: str) -> None:
    response = gateway.post(PATH, body(**change))
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert gateway.market.specs == []
