"""Anthropic's client, and those that speak OpenAI's Responses API, against a scripted market."""

import pytest

from tests.clients.environments import run_python
from tests.clients.saying import PERSON, TEXT, WEATHER, call_tool, say, say_text
from tests.integration.openai_api import Served

pytestmark = pytest.mark.slow


def test_anthropic_reads_messages_counts_and_refusals(served: Served) -> None:
    say_text(served)
    assert run_python("openai", "anthropic_messages.py", served.api, "text") == {
        "texts": [TEXT] * 3,
        "stop": ["end_turn"] * 2,
        "usage": [7, 3],
        "has_request_id": True,
        "ends": ["message_start", "message_stop"],
        "counts": len("hi"),
        "refusals": [
            ["NotFoundError", 404, "not_found_error"],
            ["AuthenticationError", 401, "authentication_error"],
            ["BadRequestError", 400, "invalid_request_error"],
        ],
    }


def test_anthropic_reads_calls_and_replays_them(served: Served) -> None:
    call_tool(served, WEATHER)
    assert run_python("openai", "anthropic_messages.py", served.api, "tools") == {
        "inputs": [{"city": "Paris"}] * 2,
        "stop": ["tool_use"] * 3,
    }


def test_openai_reads_responses_and_refusals(served: Served) -> None:
    say_text(served)
    assert run_python("openai", "openai_responses.py", served.api, "text") == {
        "texts": [TEXT] * 3,
        "status": ["completed"] * 2,
        "usage": 10,
        "refusals": [[404, "response_id"], [400, "previous_response_id"], [400, "tools[0].type"]],
    }


def test_openai_reads_calls_of_responses_and_replays_them(served: Served) -> None:
    call_tool(served, WEATHER)
    assert run_python("openai", "openai_responses.py", served.api, "tools") == {
        "arguments": [{"city": "Paris"}] * 2,
        "has_deltas": True,
        "status": "completed",
    }


def test_openai_parses_a_typed_response(served: Served) -> None:
    say(served, PERSON[:9], PERSON[9:])
    found = run_python("openai", "openai_responses.py", served.api, "parsed")
    assert found == {"name": "Ada", "age": 36}


def test_openai_agents_run_over_responses(served: Served) -> None:
    say_text(served)
    assert run_python("openai", "openai_agent.py", served.api, "text") == [TEXT, TEXT]


def test_openai_agents_run_their_tools(served: Served) -> None:
    call_tool(served, WEATHER)
    found = run_python("openai", "openai_agent.py", served.api, "tools")
    assert found == ["Paris"] * 2
