"""POST /v1/chat/completions, whole and streamed."""

import json
from typing import Any

import httpx
import pytest

from coordinator.buyer.errors import JobFailed
from protocol.endings import Finish
from protocol.errors import Code
from protocol.features import Feature
from protocol.generation import ChatMessage, GenerationInput
from protocol.grants import Payer
from protocol.messages import Objective, Task
from tests.coordinator.gateway.fake_market import DIGESTS, NODE_KEY, Script
from tests.coordinator.gateway.harness import Harness

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
ANSWER = "Hello wörld 🙂"


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny-chat", "messages": MESSAGES, **more}


def asked(gateway: Harness) -> GenerationInput:
    job_input = gateway.market.specs[-1].job_input
    assert isinstance(job_input, GenerationInput)
    return job_input


def events(response: httpx.Response) -> list[Any]:
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    data = [block.removeprefix("data: ") for block in blocks if not block.startswith(":")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def text_of(stream: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for event in stream
        if event != "[DONE]"
        for choice in event["choices"]
    )


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error, dict)
    return error


def test_a_whole_answer(gateway: Harness) -> None:
    response = gateway.post(PATH, body())
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == 7
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["usage"]["total_tokens"] == 12
    assert DIGESTS[Task.CAUSAL_LM].startswith(answer["system_fingerprint"])


def test_headers_say_where_it_ran_and_what_it_cost(gateway: Harness) -> None:
    headers = gateway.post(PATH, body()).headers
    assert headers["x-capacloud-node"] == NODE_KEY.peer_id
    assert headers["x-capacloud-attempts"] == "1"
    assert headers["x-capacloud-match-us"] == "42"
    assert headers["x-capacloud-queue-ms"] == "3"
    assert "output_per_mtok=80000000" in headers["x-capacloud-price-nano"]
    assert headers["x-capacloud-amount-nano"] == "540"
    assert float(headers["x-capacloud-overhead-ms"]) >= 0
    assert len(headers["x-capacloud-job-id"]) == 26
    assert headers["x-request-id"].startswith("req_")


def test_a_length_limit_is_told(gateway: Harness) -> None:
    gateway.market.script = Script(finish=Finish.LENGTH)
    assert gateway.post(PATH, body()).json()["choices"][0]["finish_reason"] == "length"


def test_an_answer_that_its_deadline_ended_says_so_whole_and_streamed(gateway: Harness) -> None:
    gateway.market.script = Script(finish=Finish.LENGTH, reason=Code.DEADLINE_EXCEEDED)
    whole = gateway.post(PATH, body())
    (choice,) = whole.json()["choices"]
    assert (choice["finish_reason"], choice["ended_by"]) == ("length", "deadline_exceeded")
    assert whole.headers["x-capacloud-ended-by"] == "deadline_exceeded"
    *_, last, _done = events(gateway.post(PATH, body(stream=True)))
    (choice,) = last["choices"]
    assert (choice["finish_reason"], choice["ended_by"]) == ("length", "deadline_exceeded")


@pytest.mark.parametrize(
    ("script", "stop_reason"),
    [
        (Script(end_stop=1), "FIN"),
        (Script(end_token=9), 9),
        # The model's own end.
        (Script(end_token=2), None),
        (Script(), None),
    ],
)
def test_a_choice_says_what_ended_it_whole_and_streamed(
    gateway: Harness, script: Script, stop_reason: str | int | None
) -> None:
    gateway.market.features = frozenset(Feature)
    gateway.market.script = script
    asked = body(stop=["END", "FIN"], stop_token_ids=[9])
    (choice,) = gateway.post(PATH, asked).json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop_reason)
    *_, last, _done = events(gateway.post(PATH, asked | {"stream": True}))
    assert last["choices"][0]["stop_reason"] == stop_reason


def test_a_stream(gateway: Harness) -> None:
    response = gateway.post(PATH, body(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-capacloud-node"] == NODE_KEY.peer_id
    stream = events(response)
    assert stream[-1] == "[DONE]"
    assert text_of(stream) == ANSWER
    assert stream[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert stream[-2]["choices"][0]["finish_reason"] == "stop"
    assert len({(event["id"], event["created"]) for event in stream[:-1]}) == 1
    assert all("usage" not in event for event in stream[:-1])


def test_a_stream_with_usage(gateway: Harness) -> None:
    stream = events(gateway.post(PATH, body(stream=True, stream_options={"include_usage": True})))
    assert stream[-2]["choices"] == []
    assert stream[-2]["usage"]["total_tokens"] == 12
    assert all(event["usage"] is None for event in stream[:-2])


def test_an_answer_without_a_token(gateway: Harness) -> None:
    gateway.market.script = Script(tokens=())
    assert gateway.post(PATH, body()).json()["choices"][0]["message"]["content"] == ""
    stream = events(gateway.post(PATH, body(stream=True)))
    assert text_of(stream) == ""
    assert [event["choices"][0]["finish_reason"] for event in stream[:-1]] == [None, "stop"]


def test_parameters_reach_the_engine(gateway: Harness) -> None:
    gateway.post(
        PATH,
        body(
            max_tokens=7,
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            seed=3,
            stop=["\n", "END"],
            user="someone",
            ignore_eos=True,
            n=1,
            logprobs=False,
            tools=[],
            tool_choice="auto",
            response_format={"type": "text"},
            presence_penalty=0.0,
            provider={"sort": "price", "max_price": {"prompt": 1}},
        ),
    )
    assert asked(gateway) == GenerationInput(
        max_tokens=7,
        messages=(ChatMessage("user", "hi"),),
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        seed=3,
        stop=("\n", "END"),
        ignore_eos=True,
    )
    spec = gateway.market.specs[-1]
    assert spec.objective is Objective.PRICE
    assert spec.constraints.max_price.prompt_nano_per_mtok == 1_000_000_000
    assert spec.payer == Payer("key-1")


def test_the_newer_name_of_max_tokens_wins(gateway: Harness) -> None:
    gateway.post(PATH, body(max_tokens=9, max_completion_tokens=4))
    assert asked(gateway).max_tokens == 4


def test_a_negative_seed_is_a_seed(gateway: Harness) -> None:
    gateway.post(PATH, body(seed=-1))
    assert asked(gateway).seed == 2**63 - 1


def test_content_parts_and_roles(gateway: Harness) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    gateway.post(
        PATH,
        body(
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": parts, "name": "x"},
                {"role": "assistant", "content": ""},
                {"role": "assistant", "content": None},
            ]
        ),
    )
    assert asked(gateway).messages == (
        ChatMessage("system", "be brief"),
        ChatMessage("user", "a\nb", name="x"),
        ChatMessage("assistant", ""),
        ChatMessage("assistant", ""),
    )


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{"role": "tool"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a"] * 9}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 9}, "n"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"n": True}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"guided_json": {"type": "objekt"}}, "guided_json.type"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
        ({"provider": {"max_price": {"output": 0}}}, "provider.max_price.output"),
        ({"logit_bias": {"50256": -101}}, "logit_bias.50256"),
        ({"logit_bias": {"the": 1}}, "logit_bias.the"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"provider": {"only": ["nobody"]}}, "provider.only"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_is_refused_by_name_before_anything_is_bought(
    gateway: Harness, change: dict[str, Any], param: str, stream: bool
) -> None:
    request = body(stream=stream) | change
    if "stream_options" in change and "stream" not in change:
        request["stream"] = False
    response = gateway.request(
        "POST",
        PATH,
        content=json.dumps(request).encode(),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert gateway.market.specs == []
    assert gateway.post(PATH, body()).status_code == 200


def test_an_unknown_model(gateway: Harness) -> None:
    for stream in (False, True):
        response = gateway.post(PATH, body(model="gpt-9", stream=stream))
        assert response.status_code == 404
        error = error_of(response)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status", "api_code"),
    [
        (Code.PROMPT_TOO_LONG, 400, "context_length_exceeded"),
        (Code.INPUT_TOO_LARGE, 400, "context_length_exceeded"),
        (Code.INVALID_INPUT, 400, "invalid_input"),
        (Code.OUT_OF_FUNDS, 402, "out_of_funds"),
        (Code.NO_NODE_FITS, 503, "no_node_fits"),
        (Code.BUSY, 429, "busy"),
        (Code.NODE_LOST, 502, "node_lost"),
        (Code.DEADLINE_EXCEEDED, 504, "deadline_exceeded"),
    ],
)
def test_a_job_that_fails_before_its_first_token_is_a_plain_error(
    gateway: Harness, stream: bool, code: Code, status: int, api_code: str
) -> None:
    gateway.market.script = Script(failure=JobFailed("words of a node", code=code))
    response = gateway.post(PATH, body(stream=stream))
    assert response.status_code == status
    assert error_of(response)["code"] == api_code
    if status == 400:
        assert error_of(response)["param"] == "messages"


def test_a_cut_stream_ends_with_an_error_event_and_without_done(gateway: Harness) -> None:
    failure = JobFailed("the node is gone: 10.0.0.1", code=Code.NODE_LOST, amount_nano=5_000)
    gateway.market.script = Script(failure=failure, failure_after=2)
    response = gateway.post(PATH, body(stream=True))
    assert response.status_code == 200
    stream = events(response)
    assert "[DONE]" not in stream
    assert text_of(stream[:-1]) == "Hello"
    error = stream[-1]["error"]
    assert error["code"] == "node_lost"
    assert "charged, at most 0.000005 credits" in error["message"]
    assert "10.0.0.1" not in error["message"]


def test_a_cut_whole_answer_must_not_be_sent_again(gateway: Harness) -> None:
    failure = JobFailed("gone", code=Code.NODE_LOST, amount_nano=5_000)
    gateway.market.script = Script(failure=failure, failure_after=2)
    response = gateway.post(PATH, body())
    assert response.status_code == 502
    assert response.headers["x-should-retry"] == "false"


def test_a_prompt_that_a_node_finds_too_long_is_told_in_the_usual_words(gateway: Harness) -> None:
    gateway.market.script = Script(failure=JobFailed("9000 tokens", code=Code.PROMPT_TOO_LONG))
    error = error_of(gateway.post(PATH, body(stream=True)))
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length" in error["message"]
    assert "9000 tokens" in error["message"]
