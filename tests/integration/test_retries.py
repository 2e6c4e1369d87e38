"""The stock `openai` client sends requests again, and looks at what it bought: one charge each."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from coordinator.settling.evidence import read_evidence
from protocol.receipts import verify_chain
from tests.coordinator.gateway.fake_market import Script
from tests.integration.conftest import RunningMarket
from tests.integration.openai_api import WITHIN_S, Served, served_gateway

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def served() -> Iterator[Served]:
    with served_gateway() as running:
        yield running


def test_a_client_that_times_out_and_tries_again_buys_once(served: Served) -> None:
    served.market.script = Script(interval_s=0.25)
    with OpenAI(
        base_url=served.api.base_url, api_key=served.api.key, timeout=0.8, max_retries=3
    ) as client:
        answer = client.chat.completions.create(model=served.api.chat_model, messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello wörld 🙂"
    assert len(served.market.specs) == 1
    assert served.market.cancelled == 0


def test_a_conflict_is_not_tried_again(served: Served) -> None:
    key = {"Idempotency-Key": "order-1"}
    with OpenAI(base_url=served.api.base_url, api_key=served.api.key, timeout=WITHIN_S) as client:
        create = client.chat.completions.create
        create(model=served.api.chat_model, messages=MESSAGES, extra_headers=key)
        with pytest.raises(openai.ConflictError) as caught:
            create(model=served.api.chat_model, messages=MESSAGES, seed=1, extra_headers=key)
    assert caught.value.code == "idempotency_key_reused"
    assert len(served.market.specs) == 1


@pytest.mark.models
@pytest.mark.slow
def test_on_a_real_market_a_key_pays_once_and_the_books_agree(market: RunningMarket) -> None:
    headers = {"authorization": f"Bearer {market.api_key}"}

    def get(path: str) -> Any:
        response = httpx.get(f"{market.http}{path}", headers=headers, timeout=WITHIN_S)
        assert response.status_code == 200, response.text
        return response

    key = {"Idempotency-Key": "real-1"}
    with OpenAI(base_url=f"{market.http}/v1", api_key=market.api_key, timeout=60.0) as client:
        first, again = (
            client.chat.completions.create(
                model="smollm2-135m-instruct",
                messages=MESSAGES,
                max_tokens=8,
                extra_headers=key,
            )
            for _ in range(2)
        )
    assert first == again
    generation = get(f"/v1/generation?id={first.id}").json()["data"]
    assert generation["tokens_completion"] == first.usage.completion_tokens  # type: ignore[union-attr]
    assert set(generation["timings_ms"]) >= {"parse", "match", "hold", "node"}
    evidence = read_evidence(get(f"/v1/receipts/{first.id}").text)
    verify_chain(evidence)
    assert evidence.receipt.digest in generation["receipts"]
    jobs = get("/v1/jobs?limit=100").json()["data"]
    assert [job["id"] for job in jobs].count(generation["id"]) == 1
    spent = get("/v1/credits").json()["data"]["total_usage_nano"]
    assert spent >= generation["amount_nano"]
    assert get("/v1/usage").json()["data"][0]["requests"] >= 1


@pytest.mark.models
@pytest.mark.slow
def test_what_a_client_hung_up_on_can_be_fetched(market: RunningMarket) -> None:
    body = {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "Count from one to one thousand."}],
        "max_tokens": 1_500,
        "ignore_eos": True,
    }
    with market.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=body, timeout=1.5)
        job = client.get("/v1/jobs?limit=1").json()["data"][0]
        deadline = time.monotonic() + WITHIN_S
        while job["state"] != "settled":
            assert time.monotonic() < deadline, job
            job = client.get(f"/v1/jobs/{job['id']}").json()
        # The node's receipt and what the gateway keeps are written side by side.
        while (kept := client.get(f"/v1/generation/{job['id']}/content")).status_code != 200:
            assert time.monotonic() < deadline, kept.text
        content = kept.json()["data"]
    (attempt,) = job["attempts"]
    assert attempt["finish"] == "cancelled"
    assert content["is_partial"]
    assert content["output"]["completion"]
    # Cancelled at once: the whole answer would have taken many times as long.
    assert attempt["total_ms"] < 2_500
    assert 0 < job["output_tokens"] < body["max_tokens"]
