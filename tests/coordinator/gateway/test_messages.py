"""Anthropic's API: what it reads, what it answers, and that a stream comes to the same message."""

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.buyer.errors import JobFailed
from protocol.endings import Finish
from protocol.errors import Code
from protocol.features import Feature
from protocol.generation import ChatMessage, FormatKind, GenerationInput, ToolCall, ToolChoice
from tests.coordinator.gateway.events import answer_of, events_of
from tests.coordinator.gateway.fake_market import LIMITED_KEY, Script
from tests.coordinator.gateway.harness import Harness

PATH = "/v1/messages"
TOOL = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALLING = 'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}'
CALLING += "\n</tool_call>"
CUT_SHORT = CALLING[: CALLING.index("Paris")]
BREAKS = "one\u2028two\u2029three\u0085four"
THINKING = "<think>\nThey greet me.\n</think>\n\nHello!"


def body(**changes: Any) -> dict[str, Any]:
    plain = {
        "model": "tiny-chat",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "hi"}],
    }
    return {**plain, **changes}


def asked(gateway: Harness, **changes: Any) -> GenerationInput:
    """What a node is asked for."""
    response = gateway.post(PATH, body(**changes))
    assert response.status_code == 200, response.text
    job_input = gateway.market.specs[-1].job_input
    assert isinstance(job_input, GenerationInput)
    return job_input


def say(gateway: Harness, text: str, finish: Finish = Finish.STOP) -> None:
    gateway.market.script = Script(tokens=list(text), finish=finish)


def message_of(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a stream comes to, put together as Anthropic's clients do it."""
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
    message: dict[str, Any] = events[0]["message"]
    inputs: dict[int, str] = defaultdict(str)
    for event in events[1:-1]:
        kind = event["type"]
        if kind == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
        elif kind == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "input_json_delta":
                inputs[event["index"]] += delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
        elif kind == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
        else:
            assert kind == "content_block_stop"
            with suppress(ValueError):
                message["content"][event["index"]]["input"] = json.loads(inputs[event["index"]])
    return message


def test_a_message_is_answered(gateway: Harness) -> None:
    response = gateway.post(PATH, body())
    assert response.status_code == 200
    assert response.headers["request-id"] == response.headers["x-request-id"]
    message = response.json()
    assert message.pop("id").startswith("msg_")
    assert message.pop("usage") == {
        "input_tokens": 7,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 5,
        "cost_nano": 540,
    }
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "tiny-chat",
        "content": [{"type": "text", "text": "Hello wörld 🙂"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }


def test_the_events_of_a_stream_come_in_anthropics_order(gateway: Harness) -> None:
    events = events_of(gateway.post(PATH, body(stream=True)))
    kinds = [event["type"] for event in events]
    deltas = kinds.count("content_block_delta")
    assert deltas >= 1
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["usage"]["input_tokens"] == 7


@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    text=st.sampled_from([CALLING, CALLING * 2, THINKING, BREAKS, "", CALLING[:60], CUT_SHORT]),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    finish=st.sampled_from([Finish.STOP, Finish.LENGTH]),
    thinks=st.booleans(),
)
def test_a_stream_comes_to_the_same_message_however_it_is_cut(
    gateway: Harness, text: str, cuts: list[int], finish: Finish, thinks: bool
) -> None:
    gateway.market.features = frozenset(Feature)
    tokens, rest = [], text
    while rest:
        for size in cuts:
            tokens.append(rest[:size])
            rest = rest[size:]
    request = body(tools=[TOOL], thinking={"type": "enabled" if thinks else "disabled"})
    gateway.market.script = Script(tokens=tokens, finish=finish)
    whole = answer_of(gateway.post(PATH, request))
    streamed = message_of(events_of(gateway.post(PATH, request | {"stream": True})))
    assert streamed == whole
    gateway.market.script = Script(tokens=[text], finish=finish)
    at_once = answer_of(gateway.post(PATH, request))
    assert at_once["content"] == whole["content"]
    assert at_once["stop_reason"] == whole["stop_reason"]


def test_a_call_is_a_block_and_ends_the_turn(gateway: Harness) -> None:
    say(gateway, CALLING)
    message = gateway.post(PATH, body(tools=[TOOL])).json()
    text, call = message["content"]
    assert text == {"type": "text", "text": "Let me look."}
    assert call.pop("id").startswith("toolu_")
    assert call == {"type": "tool_use", "name": "get_weather", "input": {"city": "Paris"}}
    assert message["stop_reason"] == "tool_use"


def test_a_thread_is_refused_so_that_clients_go_on_without(gateway: Harness) -> None:
    """Anthropic's own tool runner asks for one, and reads the details."""
    response = gateway.post(PATH, body(thread={"type": "create"}))
    assert response.status_code == 400
    details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert response.json()["error"]["details"] == details


def test_thinking_is_shown_only_to_those_who_ask(gateway: Harness) -> None:
    gateway.market.features = frozenset(Feature)
    say(gateway, THINKING)
    (text,) = gateway.post(PATH, body()).json()["content"]
    thought, answer = gateway.post(PATH, body(thinking={"type": "enabled"})).json()["content"]
    assert thought == {"type": "thinking", "thinking": "They greet me.", "signature": ""}
    assert text == answer == {"type": "text", "text": "Hello!"}


@pytest.mark.parametrize(
    ("finish", "end_stop", "reason", "text"),
    [
        (Finish.LENGTH, None, "max_tokens", None),
        (Finish.STOP, None, "end_turn", None),
        (Finish.STOP, 0, "stop_sequence", "END"),
        (Finish.STOP, 1, "stop_sequence", "FIN"),
        # No node has a reason to say this.
        (Finish.STOP, 2, "end_turn", None),
    ],
)
def test_a_message_says_which_of_several_texts_ended_it(
    gateway: Harness, finish: Finish, end_stop: int | None, reason: str, text: str | None
) -> None:
    stops = ["END", "FIN"]
    say(gateway, "Hi", finish)
    gateway.market.script = replace(gateway.market.script, end_stop=end_stop)
    message = gateway.post(PATH, body(stop_sequences=stops)).json()
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, text)


def test_how_tokens_are_chosen_is_passed_on(gateway: Harness) -> None:
    job_input = asked(
        gateway,
        temperature=0.25,
        top_p=0.5,
        top_k=7,
        stop_sequences=["END"],
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={
            "effort": "low",
            "format": {"type": "json_schema", "schema": {"type": "object"}},
        },
    )
    assert (job_input.temperature, job_input.top_p, job_input.top_k) == (0.25, 0.5, 7)
    assert (job_input.stop, job_input.max_tokens) == (("END",), 50)
    assert job_input.format is not None
    assert job_input.format.kind is FormatKind.JSON_SCHEMA
    arguments = json.loads(job_input.template_arguments)
    assert arguments == {"enable_thinking": True, "reasoning_effort": "low"}


def test_a_conversation_with_tools_is_told_to_the_model(gateway: Harness) -> None:
    job_input = asked(
        gateway,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        tools=[TOOL],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I look.", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "One moment."},
                    {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "é"}},
                    {"type": "tool_use", "id": "t2", "name": "get_weather", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "is_error": True,
                        "content": [{"type": "text", "text": "no city"}],
                    },
                    {"type": "text", "text": "So?"},
                    {"type": "text", "text": "Tell me."},
                ],
            },
        ],
    )
    assert job_input.messages == (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Weather?"),
        ChatMessage(
            "assistant",
            "One moment.",
            tool_calls=(
                ToolCall("t1", "get_weather", '{"city": "é"}'),
                ToolCall("t2", "get_weather", "{}"),
            ),
            reasoning="I look.",
        ),
        ChatMessage("tool", "sunny", tool_call_id="t1"),
        ChatMessage("tool", "Error: no city", tool_call_id="t2"),
        ChatMessage("user", "So?\nTell me."),
    )
    assert not job_input.continues_final_message


@pytest.mark.parametrize(
    ("choice", "expected", "tools"),
    [
        (None, ToolChoice.AUTO, 2),
        ({"type": "auto"}, ToolChoice.AUTO, 2),
        ({"type": "any"}, ToolChoice.REQUIRED, 2),
        ({"type": "tool", "name": "other"}, ToolChoice.REQUIRED, 1),
        ({"type": "none"}, ToolChoice.AUTO, 0),
    ],
)
def test_tool_choice(gateway: Harness, choice: object, expected: ToolChoice, tools: int) -> None:
    job_input = asked(gateway, tools=[TOOL, TOOL | {"name": "other"}], tool_choice=choice)
    assert (job_input.tool_choice, len(job_input.tools)) == (expected, tools)


def test_one_call_at_most_if_asked(gateway: Harness) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert not asked(gateway, tools=[TOOL], tool_choice=choice).parallel_tool_calls


def test_an_answer_goes_on_with_the_assistants_last_message(gateway: Harness) -> None:
    turns = [{"role": "user", "content": "Colours?"}, {"role": "assistant", "content": "1. Red"}]
    assert asked(gateway, messages=turns).continues_final_message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "images"),
        ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, "text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "text"),
        ({"system": 7}, "system"),
        ({"temperature": 3}, "temperature"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "client runs"),
        ({"tools": [TOOL, TOOL]}, "get_weather"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "among tools"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "schema"),
    ],
)
def test_what_cannot_be_done_is_refused_in_anthropics_shape(
    gateway: Harness, changes: dict[str, Any], words: str
) -> None:
    response = gateway.post(PATH, body(**changes))
    assert response.status_code == 400
    told = response.json()
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert words in told["error"]["message"]
    assert gateway.market.specs == []


def test_a_model_that_cannot_call_tools_says_so(gateway: Harness) -> None:
    gateway.market.features = frozenset({Feature.CHAT})
    response = gateway.post(PATH, body(tools=[TOOL]))
    assert response.status_code == 400
    assert "does not support tools" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (Code.OUT_OF_FUNDS, 402, "billing_error"),
        (Code.UNKNOWN_MODEL, 404, "not_found_error"),
        (Code.INPUT_TOO_LARGE, 400, "invalid_request_error"),
        (Code.BUSY, 429, "rate_limit_error"),
        (Code.INTERNAL, 500, "api_error"),
        (Code.NO_NODE_FITS, 529, "overloaded_error"),
        (Code.DEADLINE_EXCEEDED, 504, "timeout_error"),
    ],
)
def test_failures_have_anthropics_names(
    gateway: Harness, failure: Code, status: int, kind: str
) -> None:
    gateway.market.script = Script(failure=JobFailed("why", code=failure), failure_after=0)
    response = gateway.post(PATH, body())
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
    assert response.headers["request-id"]


def test_agents_are_told_in_their_words_of_a_prompt_that_is_too_long(gateway: Harness) -> None:
    turns = [{"role": "user", "content": "x" * 200_000}]
    error = gateway.post(PATH, body(messages=turns)).json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("prompt is too long: ")


def test_refusals_before_the_body_have_anthropics_shape_too(gateway: Harness) -> None:
    wrong = gateway.post(PATH, body(), headers={"authorization": "Bearer x"})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")
    large = gateway.request(
        "POST",
        PATH,
        content=b"x" * 13_000_000,
        headers={"content-type": "application/json"},
    )
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    limited = {"authorization": f"Bearer {LIMITED_KEY}"}
    answers = [gateway.post(PATH, body(), headers=limited) for _ in range(3)]
    assert answers[-1].status_code == 429
    assert answers[-1].json()["error"]["type"] == "rate_limit_error"


def test_a_stream_that_breaks_ends_with_an_error_event(gateway: Harness) -> None:
    failure = JobFailed("gone", code=Code.NODE_LOST, delivered=True)
    gateway.market.script = Script(failure=failure, failure_after=2)
    *_, last = events_of(gateway.post(PATH, body(stream=True)))
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")


def test_tokens_are_counted_by_a_node_for_nothing(gateway: Harness) -> None:
    request = body(system="Be brief.", messages=[{"role": "user", "content": "one two three"}])
    del request["max_tokens"]
    response = gateway.post(f"{PATH}/count_tokens", request)
    assert response.json() == {"input_tokens": len("Be brief.one two three")}
    job_input = gateway.market.specs[-1].job_input
    assert isinstance(job_input, GenerationInput)
    assert job_input.tokenizes_only
