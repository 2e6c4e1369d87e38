"""A gateway without API keys: programs of its machine may use it, web pages may not."""

from collections.abc import Iterator

import pytest

from coordinator.gateway.config import GatewayConfig
from tests.coordinator.gateway.fake_market import API_KEY
from tests.coordinator.gateway.harness import Harness, harness

CHAT = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}]}
HERE = {"host": "127.0.0.1:8080"}


@pytest.fixture(scope="module")
def keyless() -> Iterator[Harness]:
    config = GatewayConfig(needs_key=False, cors_origins=("https://chat.example",))
    with harness(config) as running:
        # The fake market knows who callers without a key are.
        known = running.market.authenticate
        running.market.authenticate = lambda _secret: known(API_KEY)  # type: ignore[method-assign, assignment]
        yield running


@pytest.mark.parametrize("authorization", ["", "Bearer none", "Bearer sk-whatever", "Basic eDp5"])
@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "localhost:80", "[::1]:8080"])
def test_programs_need_no_key(keyless: Harness, authorization: str, host: str) -> None:
    headers = {"authorization": authorization, "host": host}
    assert keyless.post("/v1/chat/completions", CHAT, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        HERE | {"origin": "https://evil.example"},
        HERE | {"origin": "null"},
        HERE | {"origin": "http://127.0.0.1:9999"},
        {"host": "evil.example"},
        {"host": "evil.example:8080"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "192.168.0.4:8080"},
    ],
    ids=str,
)
def test_web_pages_are_refused(keyless: Harness, headers: dict[str, str]) -> None:
    refused = keyless.post("/v1/chat/completions", CHAT, headers=headers)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "origin_not_allowed"


def test_a_listed_page_may(keyless: Harness) -> None:
    headers = HERE | {"origin": "https://chat.example"}
    assert keyless.post("/v1/chat/completions", CHAT, headers=headers).status_code == 200
