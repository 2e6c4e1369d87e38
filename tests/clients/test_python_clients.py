"""LiteLLM, instructor, LangChain, LlamaIndex and pydantic-ai, as their users install them, against
a scripted market. What the `openai` client itself does is in `tests/integration`."""

import pytest

from tests.clients.environments import run_python
from tests.clients.saying import TEXT, say, say_text
from tests.integration.openai_api import Served

pytestmark = pytest.mark.slow


def test_litellm_chats_by_both_of_its_ways(served: Served) -> None:
    say_text(served)
    found = run_python("litellm", "litellm_chat.py", served.api, "text")
    assert found == {"openai": [TEXT, TEXT], "hosted_vllm": [TEXT, TEXT]}


def test_litellm_reads_every_line_of_a_stream_with_odd_line_breaks(served: Served) -> None:
    text = "one\u2028two\u2029three\u0085four"
    say(served, *text)
    found = run_python("litellm", "litellm_chat.py", served.api, "text")
    assert found == {"openai": [text, text], "hosted_vllm": [text, text]}


def test_litellm_knows_a_prompt_that_is_too_long(served: Served) -> None:
    found = run_python("litellm", "litellm_errors.py", served.api)
    assert found == {"kind": "ContextWindowExceededError", "status": 400}


def test_langchain_chats(served: Served) -> None:
    say_text(served)
    assert run_python("openai", "langchain_chat.py", served.api, "text") == [TEXT, TEXT]


def test_langchain_embeds(served: Served) -> None:
    model = served.api.embedding_model
    assert run_python("openai", "langchain_chat.py", served.api, "embed", model) == 3


def test_llama_index_completes_chats_and_streams(served: Served) -> None:
    say_text(served)
    assert run_python("llama_index", "llama_index_chat.py", served.api) == [TEXT, TEXT, TEXT]


def test_pydantic_ai_answers_in_text(served: Served) -> None:
    say_text(served)
    assert run_python("openai", "pydantic_ai_agent.py", served.api, "text") == TEXT
