"""Requests that are sent again, and clients that hang up: one purchase, and an answer to fetch."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.buyer.errors import JobFailed
from coordinator.db.engine import Database
from coordinator.gateway.config import GatewayConfig
from coordinator.in_process.shelf import DurableShelf
from protocol.errors import Code
from protocol.keys import SigningKey
from tests.clocks import HandClock
from tests.coordinator.gateway.fake_market import NOW_MS, OTHER_KEY, FakeMarket, Script
from tests.coordinator.gateway.harness import Exchange, Harness, exchange, harness
from tests.coordinator.ledger_makers import file_books

COORDINATOR_KEY = SigningKey(bytes(31) + b"m")
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}]}
STREAM = BODY | {"stream": True}
ANSWER = "Hello wörld 🙂"
KEY = {"idempotency-key": "order-1"}
ROWS = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4.5]}
ROUTES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"json": BODY}),
    (CHAT, {"json": STREAM}),
    ("/v1/completions", {"json": {"model": "tiny-chat", "prompt": "hi"}}),
    ("/v1/embeddings", {"json": {"model": "tiny-embedder", "input": "hi"}}),
    ("/v1/responses", {"json": {"model": "tiny-chat", "input": "hi"}}),
    ("/v1/responses", {"json": {"model": "tiny-chat", "input": "hi", "stream": True}}),
    ("/v1/messages", {"json": BODY | {"max_tokens": 8}}),
    ("/v1/messages", {"json": BODY | {"max_tokens": 8, "stream": True}}),
    (
        "/v2/models/tiny-sums/infer",
        {"json": {"inputs": [ROWS]}},
    ),
    (
        "/v1/images/classifications",
        {"files": {"image": b"\x89PNG\r\n\x1a\n"}, "data": {"model": "tiny/classifier"}},
    ),
]


def purchases(gateway: Harness) -> int:
    return len(gateway.market.specs)


def retry(count: int) -> dict[str, str]:
    return {"x-stainless-retry-count": str(count)}


async def hang_up(open_: Exchange) -> None:
    open_.hang_up()
    await asyncio.wait([open_.task])


@pytest.mark.parametrize(("path", "request_"), ROUTES)
def test_every_route_answers_a_key_once_and_then_the_same_again(
    gateway: Harness, path: str, request_: dict[str, Any]
) -> None:
    first = gateway.post(path, headers=KEY, **request_)
    again = gateway.post(path, headers=KEY, **request_)
    assert first.status_code == 200
    assert again.content == first.content
    assert again.headers["x-generation-id"] == first.headers["x-generation-id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert purchases(gateway) == 1


def test_an_empty_key_is_none(gateway: Harness) -> None:
    for body in (BODY, BODY, BODY | {"max_tokens": 7}):
        response = gateway.post(CHAT, body, headers={"idempotency-key": ""})
        assert response.status_code == 200
        assert "idempotent-replayed" not in response.headers
    assert purchases(gateway) == 3


def test_another_body_route_or_routing_under_a_key_is_a_conflict(gateway: Harness) -> None:
    gateway.post(CHAT, BODY, headers=KEY)
    provider = {"x-capacloud-provider": '{"sort": "price"}'}
    for response in (
        gateway.post(CHAT, BODY | {"temperature": 0.5}, headers=KEY),
        gateway.post(CHAT, STREAM, headers=KEY),
        gateway.post("/v1/completions", {"model": "tiny-chat", "prompt": "hi"}, headers=KEY),
        gateway.post(CHAT, BODY, headers=KEY | provider),
    ):
        assert response.status_code == 409
        assert response.headers["x-should-retry"] == "false"
        assert response.json()["error"]["code"] == "idempotency_key_reused"
    assert purchases(gateway) == 1


def test_keys_belong_to_accounts(gateway: Harness) -> None:
    gateway.post(CHAT, BODY, headers=KEY)
    other = gateway.post(CHAT, STREAM, headers=KEY | {"authorization": f"Bearer {OTHER_KEY}"})
    assert other.status_code == 200
    assert purchases(gateway) == 2


def test_without_a_key_each_request_is_a_purchase(gateway: Harness) -> None:
    first, second = gateway.post(CHAT, BODY), gateway.post(CHAT, BODY)
    assert purchases(gateway) == 2
    assert first.headers["x-generation-id"] != second.headers["x-generation-id"]


def test_fifty_equal_requests_at_once_are_one_purchase(gateway: Harness) -> None:
    async def main() -> set[bytes]:
        opened = [exchange(gateway.app, CHAT, BODY, headers=KEY) for _ in range(50)]
        await asyncio.gather(*(one.task for one in opened))
        return {await body_of(one) for one in opened}

    bodies = gateway.run(main())
    assert len(bodies) == 1
    assert purchases(gateway) == 1


async def body_of(one: Exchange) -> bytes:
    body = b""
    while not one.messages.empty():
        body += (await one.messages.get()).get("body", b"")
    return body


def test_a_stream_that_runs_is_joined_from_its_start_and_outlives_its_first_client(
    gateway: Harness,
) -> None:
    gateway.market.script = Script(gate_before=2)

    async def main() -> str:
        first = exchange(gateway.app, CHAT, STREAM, headers=KEY)
        await gateway.wait(gateway.market.waiting)
        second = exchange(gateway.app, CHAT, STREAM, headers=KEY)
        await second.next()
        await hang_up(first)
        gateway.in_trio(gateway.market.gate.set)
        await second.task
        return (await body_of(second)).decode()

    text = gateway.run(main())
    events = [json.loads(e.removeprefix("data: ")) for e in text.split("\n\n")[:-2]]
    pieces = [e["choices"][0]["delta"].get("content", "") for e in events if e["choices"]]
    assert "".join(pieces) == ANSWER
    assert text.endswith("data: [DONE]\n\n")
    assert purchases(gateway) == 1
    assert gateway.market.cancelled == 0


def test_a_refusal_that_cost_nothing_gives_its_key_free(gateway: Harness) -> None:
    gateway.market.script = Script(failure=JobFailed("busy", code=Code.BUSY))
    assert gateway.post(CHAT, BODY, headers=KEY).status_code == 429
    gateway.market.script = Script()
    assert gateway.post(CHAT, BODY, headers=KEY).status_code == 200
    assert purchases(gateway) == 2


def test_a_failure_that_was_paid_for_is_not_bought_again(gateway: Harness) -> None:
    failure = JobFailed("cut", code=Code.NODE_LOST, delivered=True, amount_nano=7)
    gateway.market.script = Script(failure=failure, failure_after=2)
    first = gateway.post(CHAT, BODY, headers=KEY)
    again = gateway.post(CHAT, BODY, headers=KEY)
    assert (first.status_code, again.status_code) == (502, 502)
    assert again.content == first.content
    assert purchases(gateway) == 1


def test_a_request_that_cannot_be_read_claims_no_key(gateway: Harness) -> None:
    assert gateway.post(CHAT, {"model": "tiny-chat"}, headers=KEY).status_code == 400
    assert gateway.post(CHAT, BODY, headers=KEY).status_code == 200


def test_a_stock_client_that_timed_out_gets_what_it_asked_for_first(gateway: Harness) -> None:
    gateway.market.script = Script(gate_before=2)

    async def main() -> bytes:
        first = exchange(gateway.app, CHAT, BODY, headers=retry(0))
        await gateway.wait(gateway.market.waiting)
        await hang_up(first)
        second = exchange(gateway.app, CHAT, BODY, headers=retry(1))
        # Another request of the same client is no retry.
        third = exchange(gateway.app, CHAT, BODY, headers=retry(0))
        gateway.in_trio(gateway.market.gate.set)
        await asyncio.gather(second.task, third.task)
        return await body_of(second)

    assert json.loads(gateway.run(main()))["choices"][0]["message"]["content"] == ANSWER
    assert purchases(gateway) == 2
    assert gateway.market.cancelled == 0


def test_a_stock_client_that_does_not_come_back_is_not_waited_for_long() -> None:
    with harness(GatewayConfig(resend_within_s=0.02)) as gateway:
        gateway.market.script = Script(gate_before=2)

        async def main() -> None:
            first = exchange(gateway.app, CHAT, BODY, headers=retry(0))
            await gateway.wait(gateway.market.waiting)
            await hang_up(first)
            await gateway.wait(gateway.market.cancellation)

        gateway.run(main())
        assert gateway.market.cancelled == 1


def content_of(gateway: Harness, generation: str) -> httpx.Response:
    return gateway.get(f"/v1/generation/{generation}/content")


def test_a_client_that_hangs_up_ends_its_purchase_and_can_fetch_what_there_is(
    gateway: Harness,
) -> None:
    gateway.market.script = Script(gate_before=2)

    async def main() -> None:
        first = exchange(gateway.app, CHAT, BODY)
        await gateway.wait(gateway.market.waiting)
        await hang_up(first)
        await gateway.wait(gateway.market.cancellation)

    gateway.run(main())
    generation = gateway.market.job_id_of(0)
    assert generation is not None
    data = eventually(gateway, generation).json()["data"]
    assert data["is_partial"]
    assert data["output"]["completion"] == "Hello"
    stranger = gateway.get(
        f"/v1/generation/{generation}/content", headers={"authorization": f"Bearer {OTHER_KEY}"}
    )
    assert stranger.status_code == 404


def eventually(gateway: Harness, generation: str) -> httpx.Response:
    """The content, once it is on the shelf."""

    async def main() -> None:
        shelf = gateway.market.shelf
        while True:
            found = await gateway.bridge.call(
                shelf.find, gateway.market.client, f"job/{generation}"
            )
            if found is not None and found.data is not None:
                return

    gateway.run(main())
    return content_of(gateway, generation)


def test_a_client_that_asked_for_it_fetches_the_whole_answer(gateway: Harness) -> None:
    gateway.market.script = Script(gate_before=2)

    async def main() -> None:
        first = exchange(gateway.app, CHAT, BODY, headers={"x-capacloud-keep": "true"})
        await gateway.wait(gateway.market.waiting)
        await hang_up(first)
        gateway.in_trio(gateway.market.gate.set)

    gateway.run(main())
    generation = gateway.market.job_id_of(0)
    assert generation is not None
    answer = eventually(gateway, generation).json()
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert gateway.market.cancelled == 0


def test_an_answer_that_was_read_is_not_kept(gateway: Harness) -> None:
    generation = gateway.post(CHAT, BODY).headers["x-generation-id"]
    assert content_of(gateway, generation).status_code == 404


def test_a_client_of_a_stream_that_vanishes_ends_its_job(gateway: Harness) -> None:
    gateway.market.script = Script(gate_before=2)

    async def main() -> None:
        first = exchange(gateway.app, CHAT, STREAM, headers=retry(0))
        await gateway.wait(gateway.market.waiting)
        await hang_up(first)
        await gateway.wait(gateway.market.cancellation)

    gateway.run(main())
    assert gateway.market.cancelled == 1


def test_the_generation_is_named_before_its_node_is_known() -> None:
    with harness(GatewayConfig(keepalive_s=0.02)) as gateway:
        gateway.market.script = Script(gate_before=0)

        async def main() -> dict[bytes, bytes]:
            first = exchange(gateway.app, CHAT, STREAM)
            headers = dict((await first.next())["headers"])
            gateway.in_trio(gateway.market.gate.set)
            await first.task
            return headers

        headers = gateway.run(main())
        job_id = gateway.market.job_id_of(0)
        assert headers[b"x-generation-id"].decode() == job_id
        assert b"x-capacloud-node" not in headers


def test_a_refusal_is_not_what_the_next_try_gets(gateway: Harness) -> None:
    gateway.market.script = Script(failure=JobFailed("", code=Code.BUSY))
    assert gateway.post(CHAT, json=BODY, headers=retry(0)).status_code == 429
    gateway.market.script = Script()
    assert gateway.post(CHAT, json=BODY, headers=retry(1)).status_code == 200
    assert purchases(gateway) == 2


def shelf_of_books(database: Database) -> DurableShelf:
    return DurableShelf(COORDINATOR_KEY, database, HandClock(NOW_MS), random.Random(1).randbytes)


def test_a_finished_answer_outlives_the_process_that_made_it(tmp_path: Path) -> None:
    with file_books(tmp_path / "books.sqlite") as database:
        with harness(market=FakeMarket(shelf=shelf_of_books(database))) as before:
            first = before.post(CHAT, BODY, headers=KEY)
        with harness(market=FakeMarket(shelf=shelf_of_books(database))) as after:
            again = after.post(CHAT, BODY, headers=KEY)
            assert purchases(after) == 0
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"


def test_an_answer_that_the_end_of_the_process_cut_is_made_again_for_its_key(
    tmp_path: Path,
) -> None:
    with file_books(tmp_path / "books.sqlite") as database:
        with harness(market=FakeMarket(shelf=shelf_of_books(database))) as before:
            before.market.script = Script(gate_before=2)

            async def main() -> None:
                exchange(before.app, CHAT, BODY, headers=KEY)
                await before.wait(before.market.waiting)

            before.run(main())
        with harness(market=FakeMarket(shelf=shelf_of_books(database))) as after:
            assert after.post(CHAT, STREAM, headers=KEY).status_code == 409
            assert after.post(CHAT, BODY, headers=KEY).status_code == 200
            assert purchases(after) == 1
