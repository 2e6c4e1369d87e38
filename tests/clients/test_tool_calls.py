"""Tool calls and typed answers, as each stock client asks for them and reads them."""

import pytest

from tests.clients.environments import run_node, run_python
from tests.clients.saying import PERSON, WEATHER, call_tool, say
from tests.integration.openai_api import Served

pytestmark = pytest.mark.slow

TYPED_CALL = f'{{"name": "Person", "arguments": {PERSON}}}'
ADA = {"name": "Ada", "age": 36}
ARGUMENTS = '{"city": "Paris"}'


def test_litellm_is_told_of_a_tool_call(served: Served) -> None:
    call_tool(served, WEATHER)
    found = run_python("litellm", "litellm_chat.py", served.api, "tool")
    call = ["tool_calls", "get_weather", ARGUMENTS]
    assert found == {"openai": call, "hosted_vllm": call}


def test_instructor_extracts_by_schema(served: Served) -> None:
    say(served, PERSON[:7], PERSON[7:])
    assert run_python("litellm", "instructor_extract.py", served.api, "schema") == ADA


def test_instructor_extracts_by_tools(served: Served) -> None:
    call_tool(served, TYPED_CALL)
    assert run_python("litellm", "instructor_extract.py", served.api, "tool") == ADA


def test_langchain_calls_a_bound_tool(served: Served) -> None:
    call_tool(served, WEATHER)
    found = run_python("openai", "langchain_chat.py", served.api, "tool")
    assert found == [{"name": "get_weather", "args": {"city": "Paris"}}]


def test_pydantic_ai_gives_a_typed_answer(served: Served) -> None:
    call_tool(served, TYPED_CALL.replace("Person", "final_result", 1))
    assert run_python("openai", "pydantic_ai_agent.py", served.api, "typed") == ADA


def test_openai_for_javascript_gathers_a_streamed_tool_call(served: Served) -> None:
    call_tool(served, WEATHER)
    found = run_node("openai_node.mjs", served.api, "tool")
    assert found == ["tool_calls", "get_weather", ARGUMENTS]


def test_the_ai_sdk_calls_a_tool(served: Served) -> None:
    call_tool(served, WEATHER)
    found = run_node("ai_sdk.mjs", served.api, "tool")
    assert found == ["tool-calls", "get_weather", {"city": "Paris"}]


def test_the_ai_sdk_gets_an_object_by_schema(served: Served) -> None:
    say(served, PERSON[:9], PERSON[9:])
    assert run_node("ai_sdk.mjs", served.api, "object") == ADA
