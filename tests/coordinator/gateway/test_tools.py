"""Tools in chats: what is asked for, and how calls come back."""

import json
from typing import Any

import pytest

from protocol.features import Feature
from protocol.generation import ChatMessage, Tool, ToolCall, ToolChoice
from tests.coordinator.gateway.fake_market import Script
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_chat import MESSAGES, PATH, asked, body, error_of, events

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "weather", "description": "of a city", "parameters": PARAMETERS}
TOOLS = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": {"name": "clock", "strict": True}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TWO_CALLS = [*CALL, "\n", '<tool_call>{"name": "clock", "arguments": {}}</tool_call>']


def test_tools_reach_the_engine(gateway: Harness) -> None:
    gateway.post(PATH, body(tools=TOOLS))
    job_input = asked(gateway)
    assert [tool.name for tool in job_input.tools] == ["weather", "clock"]
    assert json.loads(job_input.tools[0].parameters) == PARAMETERS
    assert job_input.tools[1] == Tool("clock")
    assert job_input.tool_choice is ToolChoice.AUTO
    assert gateway.market.specs[-1].constraints.features == ("tools",)


@pytest.mark.parametrize(
    ("choice", "names", "wanted"),
    [
        ("auto", ["weather", "clock"], ToolChoice.AUTO),
        ("required", ["weather", "clock"], ToolChoice.REQUIRED),
        ({"type": "function", "function": {"name": "clock"}}, ["clock"], ToolChoice.REQUIRED),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "weather"}}],
                },
            },
            ["weather"],
            ToolChoice.AUTO,
        ),
        ("none", [], ToolChoice.AUTO),
    ],
)
def test_choices_of_tools(
    gateway: Harness, choice: Any, names: list[str], wanted: ToolChoice
) -> None:
    assert gateway.post(PATH, body(tools=TOOLS, tool_choice=choice)).status_code == 200
    job_input = asked(gateway)
    assert [tool.name for tool in job_input.tools] == names
    assert job_input.tool_choice is wanted


def test_calls_of_a_whole_answer(gateway: Harness) -> None:
    gateway.market.script = Script(tokens=TWO_CALLS)
    (choice,) = gateway.post(PATH, body(tools=TOOLS)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] is None
    calls = message["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "weather", "arguments": '{"city": "Köln"}'},
        {"name": "clock", "arguments": "{}"},
    ]
    assert len({call["id"] for call in calls}) == 2
    assert {call["type"] for call in calls} == {"function"}


def test_calls_of_a_stream(gateway: Harness) -> None:
    gateway.market.script = Script(tokens=["Let ", "me see.\n", *TWO_CALLS])
    stream = events(gateway.post(PATH, body(tools=TOOLS, stream=True)))
    deltas = [event["choices"][0]["delta"] for event in stream[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    calls: dict[int, dict[str, str]] = {}
    for delta in deltas:
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                assert part["type"] == "function"
                calls[part["index"]] = {"id": part["id"], **part["function"]}
            else:
                calls[part["index"]]["arguments"] += part["function"]["arguments"]
    assert [(call["name"], call["arguments"]) for call in calls.values()] == [
        ("weather", '{"city": "Köln"}'),
        ("clock", "{}"),
    ]
    assert stream[-2]["choices"][0]["finish_reason"] == "tool_calls"
    # Arguments are passed on as they arrive.
    assert sum("tool_calls" in delta for delta in deltas) > 10


def test_only_one_call_where_parallel_ones_are_not_wanted(gateway: Harness) -> None:
    gateway.market.script = Script(tokens=TWO_CALLS)
    response = gateway.post(PATH, body(tools=TOOLS, parallel_tool_calls=False))
    assert len(response.json()["choices"][0]["message"]["tool_calls"]) == 1
    assert not asked(gateway).parallel_tool_calls


def test_text_stays_text_where_no_tools_were_given(gateway: Harness) -> None:
    gateway.market.script = Script(tokens=[CALL])
    for request in (body(), body(tools=TOOLS, tool_choice="none"), body(tools=[])):
        (choice,) = gateway.post(PATH, request).json()["choices"]
        assert choice["message"]["content"] == CALL
        assert "tool_calls" not in choice["message"]


def test_a_conversation_with_calls_is_replayed(gateway: Harness) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    contents: list[dict[str, Any]] = [{"content": None}, {}, {"content": ""}, {"content": []}]
    for content in contents:
        history = [
            {"role": "user", "content": "go"},
            {"role": "assistant", "tool_calls": [call], "refusal": None, "parsed": None, **content},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "5"}]},
        ]
        assert gateway.post(PATH, body(messages=history)).status_code == 200
        assert asked(gateway).messages[1:] == (
            ChatMessage("assistant", "", (ToolCall("c1", "f", '{"a": 1}'),)),
            ChatMessage("tool", "5", tool_call_id="c1"),
        )
        assert gateway.market.specs[-1].constraints.features == ("tools",)


def test_the_older_form_of_calls_is_replayed(gateway: Harness) -> None:
    history = [
        *MESSAGES,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "5"},
    ]
    gateway.post(PATH, body(messages=history))
    assert asked(gateway).messages[1:] == (
        ChatMessage("assistant", "", (ToolCall("", "f", "{}"),)),
        ChatMessage("tool", "5", name="f"),
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "required"},
        {"messages": [*MESSAGES, {"role": "tool", "content": "5"}]},
    ],
)
def test_a_model_without_tools_is_told_in_the_usual_words(
    gateway: Harness, change: dict[str, Any], stream: bool
) -> None:
    gateway.market.features = frozenset({Feature.CHAT})
    response = gateway.post(PATH, body(stream=stream) | change)
    assert response.status_code == 400
    assert "tiny-chat does not support tools" in error_of(response)["message"]
    assert error_of(response)["param"] == "tools"
    assert gateway.market.specs == []
    assert gateway.post(PATH, body(tools=TOOLS, tool_choice="none")).status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"type": "any"}}}
                ]
            },
            "tools[0].function.parameters.type",
        ),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools[2]"),
        ({"tools": TOOLS * 70}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"functions": [WEATHER]}, "functions"),
        ({"functions": [WEATHER], "function_call": {"name": "weather"}}, "functions"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}, 5]}]},
            "messages[0].tool_calls[1]",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_bad_tools_are_refused_by_name(
    gateway: Harness, change: dict[str, Any], param: str
) -> None:
    response = gateway.post(PATH, body() | change)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert gateway.market.specs == []


def test_older_functions_that_must_not_be_called_are_ignored(gateway: Harness) -> None:
    request = body(functions=[WEATHER], function_call="none")
    assert gateway.post(PATH, request).status_code == 200


def test_reasoning_is_told_apart(gateway: Harness) -> None:
    gateway.market.features |= {Feature.REASONING}
    gateway.market.script = Script(tokens=["<thi", "nk>Hm", ".</think>", "\n\nFour."])
    (choice,) = gateway.post(PATH, body()).json()["choices"]
    assert choice["message"]["content"] == "Four."
    assert choice["message"]["reasoning_content"] == choice["message"]["reasoning"] == "Hm."
    stream = events(gateway.post(PATH, body(stream=True)))
    deltas = [event["choices"][0]["delta"] for event in stream[:-1]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "Four."
    for hidden in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}):
        assert "Hm." not in gateway.post(PATH, body(**hidden)).text
        assert "Hm." not in gateway.post(PATH, body(stream=True, **hidden)).text
