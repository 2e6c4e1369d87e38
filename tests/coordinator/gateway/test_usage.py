"""Input tokens that a node had computed before, in the words of each dialect."""

import json
from typing import Any

import pytest

from tests.coordinator.gateway.fake_market import Script
from tests.coordinator.gateway.harness import Harness

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "/v1/chat/completions": (
        CHAT,
        {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}},
    ),
    "/v1/completions": (
        {"prompt": "hi"},
        {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}},
    ),
    "/v1/responses": (
        {"input": "hi"},
        {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 4}},
    ),
    # Anthropic counts them beside the others.
    "/v1/messages": (
        {**CHAT, "max_tokens": 9},
        {"input_tokens": 3, "cache_read_input_tokens": 4},
    ),
}


@pytest.mark.parametrize("path", CALLS)
def test_cached_tokens_are_told(gateway: Harness, path: str) -> None:
    gateway.market.script = Script(cached_tokens=4)
    body, expected = CALLS[path]
    usage = gateway.post(path, {"model": "tiny-chat", **body}).json()["usage"]
    assert expected.items() <= usage.items()


def test_a_stream_tells_them_at_its_end(gateway: Harness) -> None:
    gateway.market.script = Script(cached_tokens=4)
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    response = gateway.post("/v1/chat/completions", {"model": "tiny-chat", **CHAT, **streamed})
    # The last event but `[DONE]`.
    last = response.text.split("\n\n")[-3].removeprefix("data: ")
    assert json.loads(last)["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
