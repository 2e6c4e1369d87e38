"""JavaScript's clients, Java's and curl against a scripted market."""

import json
import os
import shutil
import subprocess

import pytest

from tests.clients.environments import RUN_WITHIN_S, run_node, run_script
from tests.clients.saying import TEXT, say_text
from tests.integration.openai_api import Served

pytestmark = pytest.mark.slow


def test_openai_for_javascript_chats(served: Served) -> None:
    say_text(served)
    assert run_node("openai_node.mjs", served.api, "text") == [TEXT, TEXT]


def test_the_ai_sdk_chats(served: Served) -> None:
    say_text(served)
    assert run_node("ai_sdk.mjs", served.api, "text") == [TEXT, TEXT]


@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java here")
def test_java_sends_its_body_although_it_offers_http_2(served: Served) -> None:
    say_text(served)
    status, answer = run_script(["java"], "Chat.java", served.api)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, TEXT)


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
def test_curl_gets_an_answer_in_each_version_of_http(served: Served, version: str) -> None:
    say_text(served)
    body = {"model": served.api.chat_model, "messages": [{"role": "user", "content": "hi"}]}
    headers = [f"Authorization: Bearer {served.api.key}", "Content-Type: application/json"]
    told = [word for header in headers for word in ("-H", header)]
    url = f"{served.api.base_url}/chat/completions"
    done = subprocess.run(
        ["curl", "--silent", version, url, *told, "--data-binary", "@-"],
        input=json.dumps(body),
        capture_output=True,
        text=True,
        timeout=RUN_WITHIN_S,
        check=True,
        env=os.environ | {"no_proxy": "127.0.0.1"},
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == TEXT
