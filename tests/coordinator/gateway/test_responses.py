"""OpenAI's Responses API: what it reads, what it answers, and that a stream comes to the same."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.buyer.errors import JobFailed
from coordinator.gateway.config import GatewayConfig
from protocol.endings import Finish
from protocol.errors import Code
from protocol.features import Feature
from protocol.generation import ChatMessage, FormatKind, GenerationInput, ToolCall, ToolChoice
from tests.coordinator.gateway.events import answer_of, events_of
from tests.coordinator.gateway.fake_market import Script
from tests.coordinator.gateway.harness import Harness, harness
from tests.coordinator.gateway.test_messages import BREAKS, CALLING, CUT_SHORT, THINKING, say

PATH = "/v1/responses"
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny-chat", "input": "hi", **changes}


def asked(gateway: Harness, **changes: Any) -> GenerationInput:
    """What a node is asked for."""
    response = gateway.post(PATH, body(**changes))
    assert response.status_code == 200, response.text
    job_input = gateway.market.specs[-1].job_input
    assert isinstance(job_input, GenerationInput)
    return job_input


def output_of(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the events in a stream's middle come to, put together piece by piece."""
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items)
            items.append(event["item"])
            continue
        if not kind.startswith("response.") or "output_index" not in event:
            continue
        item = items[event["output_index"]]
        if kind == "response.content_part.added":
            item["content"].append(event["part"])
        elif kind in ("response.output_text.delta", "response.reasoning_text.delta"):
            item["content"][event["content_index"]]["text"] += event["delta"]
        elif kind == "response.function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind.endswith("text.done"):
            assert item["content"][event["content_index"]]["text"] == event["text"]
        elif kind == "response.function_call_arguments.done":
            assert (item["arguments"], item["name"]) == (event["arguments"], event["name"])
        elif kind == "response.output_item.done":
            item["status"] = event["item"]["status"]
            assert item == event["item"]
    return items


def test_a_text_is_answered(gateway: Harness) -> None:
    response = gateway.post(PATH, body(metadata={"a": "b"}, instructions="Be brief.", store=True))
    assert response.status_code == 200
    told = response.json()
    assert told["object"] == "response"
    assert told["id"].startswith("resp_")
    assert told["status"] == "completed"
    assert (told["metadata"], told["instructions"]) == ({"a": "b"}, "Be brief.")
    assert told["store"] is False
    (message,) = told["output"]
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [
            {"type": "output_text", "text": "Hello wörld 🙂", "annotations": [], "logprobs": []}
        ],
    }
    assert told["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
        "cost_nano": 540,
    }


def test_the_events_of_a_stream_come_in_openais_order(gateway: Harness) -> None:
    events = events_of(gateway.post(PATH, body(stream=True)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert deltas >= 1
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["id"] == events[-1]["response"]["id"]


@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    text=st.sampled_from([CALLING, CALLING * 2, THINKING, BREAKS, "", CALLING[:60], CUT_SHORT]),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    finish=st.sampled_from([Finish.STOP, Finish.LENGTH]),
)
def test_a_stream_comes_to_the_same_response_however_it_is_cut(
    gateway: Harness, text: str, cuts: list[int], finish: Finish
) -> None:
    gateway.market.features = frozenset(Feature)
    tokens, rest = [], text
    while rest:
        for size in cuts:
            tokens.append(rest[:size])
            rest = rest[size:]
    request = body(tools=[TOOL])
    gateway.market.script = Script(tokens=tokens, finish=finish)
    whole = answer_of(gateway.post(PATH, request))
    events = events_of(gateway.post(PATH, request | {"stream": True}))
    assert events[-1]["response"] == whole
    assert output_of(events) == whole["output"]
    assert events[-1]["type"] == f"response.{whole['status']}"
    gateway.market.script = Script(tokens=[text], finish=finish)
    at_once = answer_of(gateway.post(PATH, request))
    assert at_once["output"] == whole["output"]


def test_calls_and_reasoning_are_items(gateway: Harness) -> None:
    gateway.market.features = frozenset(Feature)
    say(gateway, THINKING.removesuffix("Hello!") + CALLING)
    reasoning, message, call = gateway.post(PATH, body(tools=[TOOL])).json()["output"]
    assert reasoning["type"] == "reasoning"
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "They greet me."}]
    assert message["content"][0]["text"] == "Let me look."
    assert call["call_id"].startswith("call_")
    assert (call["type"], call["name"]) == ("function_call", "get_weather")
    assert json.loads(call["arguments"]) == {"city": "Paris"}


def test_functions_of_a_namespace_are_called_by_their_names(gateway: Harness) -> None:
    """As Codex sends them, and reads the call."""
    gateway.market.features = frozenset(Feature)
    space = {"type": "namespace", "name": "weather", "tools": [TOOL, TOOL | {"name": "other"}]}
    say(gateway, CALLING)
    request = body(tools=[TOOL | {"name": "plain"}, space])
    output = gateway.post(PATH, request).json()["output"]
    call = output[-1]
    assert (call["name"], call["namespace"]) == ("get_weather", "weather")
    (spec,) = gateway.market.specs
    assert isinstance(spec.job_input, GenerationInput)
    assert [tool.name for tool in spec.job_input.tools] == ["plain", "get_weather", "other"]
    # The call is sent back as it was.
    answer = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    job_input = asked(gateway, tools=[space], input=[*output, answer])
    assert job_input.messages[-1].content == "sunny"


def test_the_tokens_of_an_input_are_counted_for_nothing(gateway: Harness) -> None:
    gateway.market.features = frozenset(Feature)
    response = gateway.post(f"{PATH}/input_tokens", body(tools=[TOOL], instructions="Be brief."))
    assert response.status_code == 200, response.text
    count = response.json()
    assert count.pop("input_tokens") > 0
    assert count == {"object": "response.input_tokens"}
    (spec,) = gateway.market.specs
    assert isinstance(spec.job_input, GenerationInput)
    assert spec.job_input.tokenizes_only
    refused = gateway.post(f"{PATH}/input_tokens", body(conversation="conv_1"))
    assert refused.json()["error"]["param"] == "conversation"


def test_what_is_kept_nowhere_is_not_found(gateway: Harness) -> None:
    assert gateway.post(f"{PATH}/compact", body()).status_code == 404
    assert gateway.get(f"{PATH}/resp_1").status_code == 404


def test_an_answer_that_reached_its_limit_is_incomplete(gateway: Harness) -> None:
    say(gateway, "Hi", Finish.LENGTH)
    told = gateway.post(PATH, body(max_output_tokens=2)).json()
    assert told["status"] == "incomplete"
    assert told["incomplete_details"] == {"reason": "max_output_tokens"}
    assert told["output"][0]["status"] == "incomplete"


def test_a_conversation_is_told_to_the_model(gateway: Harness) -> None:
    job_input = asked(
        gateway,
        instructions="Be brief.",
        tools=[TOOL],
        input=[
            {"role": "developer", "content": "In English."},
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "I look."}],
            },
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [{"type": "output_text", "text": "One moment.", "annotations": []}],
            },
            {
                "type": "function_call",
                "call_id": "c1",
                "name": "get_weather",
                "arguments": '{"city": "Paris"}',
            },
            {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {
                "type": "function_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "no city"}],
            },
            {"role": "user", "content": "So?"},
        ],
    )
    assert job_input.messages == (
        ChatMessage("system", "Be brief."),
        ChatMessage("system", "In English."),
        ChatMessage("user", "Weather?"),
        ChatMessage(
            "assistant",
            "One moment.",
            tool_calls=(
                ToolCall("c1", "get_weather", '{"city": "Paris"}'),
                ToolCall("c2", "get_weather", "{}"),
            ),
            reasoning="I look.",
        ),
        ChatMessage("tool", "sunny", tool_call_id="c1"),
        ChatMessage("tool", "no city", tool_call_id="c2"),
        ChatMessage("user", "So?"),
    )


def test_the_output_of_a_response_is_the_next_ones_input(gateway: Harness) -> None:
    gateway.market.features = frozenset(Feature)
    say(gateway, THINKING.removesuffix("Hello!") + CALLING)
    output = gateway.post(PATH, body(tools=[TOOL])).json()["output"]
    answer = {"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "sunny"}
    first = {"role": "user", "content": "Weather?"}
    job_input = asked(gateway, tools=[TOOL], input=[first, *output, answer])
    _, assistant, tool = job_input.messages
    assert (assistant.content, assistant.reasoning) == ("Let me look.", "They greet me.")
    assert assistant.tool_calls is not None
    assert assistant.tool_calls[0].id == tool.tool_call_id


@pytest.mark.parametrize(
    ("choice", "expected", "tools"),
    [
        (None, ToolChoice.AUTO, 2),
        ("auto", ToolChoice.AUTO, 2),
        ("required", ToolChoice.REQUIRED, 2),
        ("none", ToolChoice.AUTO, 0),
        ({"type": "function", "name": "other"}, ToolChoice.REQUIRED, 1),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "other"}],
            },
            ToolChoice.REQUIRED,
            1,
        ),
    ],
)
def test_tool_choice(gateway: Harness, choice: object, expected: ToolChoice, tools: int) -> None:
    job_input = asked(gateway, tools=[TOOL, TOOL | {"name": "other"}], tool_choice=choice)
    assert (job_input.tool_choice, len(job_input.tools)) == (expected, tools)


def test_how_tokens_are_chosen_is_passed_on(gateway: Harness) -> None:
    job_input = asked(
        gateway,
        temperature=0.25,
        top_p=0.5,
        max_output_tokens=20,
        parallel_tool_calls=False,
        tools=[TOOL],
        reasoning={"effort": "low"},
        text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        include=["reasoning.encrypted_content"],
        truncation="auto",
    )
    assert (job_input.temperature, job_input.top_p, job_input.max_tokens) == (0.25, 0.5, 20)
    assert not job_input.parallel_tool_calls
    assert job_input.format is not None
    assert job_input.format.kind is FormatKind.JSON_SCHEMA
    assert json.loads(job_input.template_arguments) == {"reasoning_effort": "low"}


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"input": None}, "input", "give"),
        ({"input": []}, "input", "empty"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "not stored"),
        ({"conversation": "conv_1"}, "conversation", "not stored"),
        ({"background": True}, "background", "not stored"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "not stored"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "web_search_call"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "user"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "does not support images",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "in Codex, set web_search"),
        (
            {"tools": [TOOL, {"type": "namespace", "name": "a", "tools": [TOOL]}]},
            "tools[1]",
            "two tools are called",
        ),
        ({"tools": [{"type": "namespace", "name": "a"}]}, "tools[0].tools", "give"),
        (
            {"tools": [{"type": "namespace", "name": "a", "tools": [{"type": "custom"}]}]},
            "tools[0].tools[0].type",
            "custom",
        ),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type", "custom"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"top_logprobs": 3}, "top_logprobs", "not supported"),
        ({"prompt": {"id": "x"}}, "prompt", "not supported"),
        ({"messages": []}, "messages", "not a parameter"),
        ({"metadata": {"a": 1}}, "metadata.a", "text"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
        ({"max_output_tokens": 0}, "max_output_tokens", "between"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    gateway: Harness, changes: dict[str, Any], param: str, words: str
) -> None:
    response = gateway.post(PATH, body(**changes))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert gateway.market.specs == []


@pytest.mark.parametrize(
    ("method", "rest"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")]
)
def test_a_stored_response_is_not_there(gateway: Harness, method: str, rest: str) -> None:
    response = gateway.request(method, f"{PATH}/resp_1{rest}")
    assert response.status_code == 404
    assert "not stored" in response.json()["error"]["message"]


def test_a_conversation_that_is_too_long_is_told_by_its_field(gateway: Harness) -> None:
    error = gateway.post(PATH, body(input="x" * 200_000)).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


def test_a_stream_that_breaks_ends_as_failed(gateway: Harness) -> None:
    failure = JobFailed("gone", code=Code.NODE_LOST, delivered=True)
    gateway.market.script = Script(failure=failure, failure_after=2)
    events = events_of(gateway.post(PATH, body(stream=True)))
    last = events[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["id"] == events[0]["response"]["id"]
    assert last["response"]["error"]["code"] == "server_error"
    assert output_of(events)[0]["status"] == "incomplete"


def test_a_stream_that_breaks_before_its_first_event_ends_with_an_error() -> None:
    with harness(GatewayConfig(keepalive_s=0.01)) as gateway:
        failure = JobFailed("gone", code=Code.NODE_LOST)
        gateway.market.script = Script(interval_s=0.1, failure=failure, failure_after=0)
        response = gateway.post(PATH, body(stream=True))
        comment, *_, last = response.text.removesuffix("\n\n").split("\n\n")
        assert comment == ": keepalive"
        event = json.loads(last.removeprefix("event: error\ndata: "))
        assert event["type"] == "error"
        assert event["error"]["message"] == event["message"]


@pytest.mark.parametrize("text", [None, {}, {"": None}, {"format": None, "verbosity": None}])
def test_an_answer_names_its_format_whatever_stood_beside_it(
    gateway: Harness, text: dict[str, Any] | None
) -> None:
    answer = gateway.post(PATH, body(text=text)).json()
    assert answer["text"] == {"format": {"type": "text"}}
