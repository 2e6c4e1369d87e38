"""Processes that die at the worst moment: nodes, workers, the coordinator."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from protocol.limits import RECEIPT_GRACE_MS
from sim.network import LocalNode
from tests.integration.frail_market import FrailMarket, OpenHold, chat_body, only, order_of

pytestmark = [pytest.mark.models, pytest.mark.slow]

# The gateway's own deadline for a job is five minutes; holds outlive that by the grace.
HOLD_MS_MAX = 300_000 + RECEIPT_GRACE_MS
LONG = {"max_tokens": 400, "stream": True}


def events_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            assert line != "data: [DONE]", "a broken stream must not look complete"
            yield json.loads(line.removeprefix("data: "))


def text_of(event: dict[str, Any]) -> str:
    return "".join(c["delta"].get("content") or "" for c in event.get("choices", ()))


def read_until_text(events: Iterator[dict[str, Any]], pieces: int) -> None:
    while pieces:
        pieces -= bool(text_of(next(events)))


def assert_next_job_works(frail: FrailMarket, **provider: Any) -> httpx.Response:
    with frail.client() as http:
        reply = http.post("/v1/chat/completions", json=chat_body(provider=provider))
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"]
    return reply


def assert_bounded(holds: list[OpenHold], node: LocalNode) -> None:
    """One hold: a dead node owes the receipt that would end it. It is not held for ever."""
    (hold,) = holds
    assert hold.node == node.peer_id
    assert hold.expires_at_ms <= int(1_000 * time.time()) + HOLD_MS_MAX


@contextmanager
def buying_from_frozen_nodes(frail: FrailMarket) -> Iterator[list[list[str]]]:
    """One stream from each node, which is frozen after some text: its job cannot end before we
    leave. After leaving, the list has the lines that came since, one list for each stream."""
    answers: list[list[str]] = []
    with ExitStack() as streams:
        with ExitStack() as frozen:
            open_streams = []
            for node in frail.nodes:
                http = streams.enter_context(frail.client())
                body = chat_body(**LONG, provider=only(node))
                request = http.stream("POST", "/v1/chat/completions", json=body)
                lines = streams.enter_context(request).iter_lines()
                read_until_text(events_of(lines), 2)
                frozen.enter_context(frail.frozen(node))
                open_streams.append(lines)
            yield answers
        for lines in open_streams:
            received: list[str] = []
            answers.append(received)
            with suppress(httpx.TransportError):
                received.extend(lines)


def test_a_worker_killed_midway_is_told_and_comes_back(frail: FrailMarket) -> None:
    node, before = frail.nodes[0], frail.open_holds()
    pid = frail.worker_of(node).pid
    with frail.client() as http:
        body = chat_body(**LONG, provider=only(node))
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            job_id = response.headers["x-capacloud-job-id"]
            events = events_of(response.iter_lines())
            read_until_text(events, 3)
            frail.worker_of(node).kill()
            *_, last = events
    assert last["error"]["code"] == "worker_crashed"
    assert "Traceback" not in json.dumps(last)
    assert_next_job_works(frail)  # At the other node, at once.

    def works_again() -> bool:
        with frail.client() as http:
            reply = http.post("/v1/chat/completions", json=chat_body(provider=only(node)))
        if reply.status_code != 200:
            assert reply.json()["error"]["code"] in ("no_node_fits", "model_unavailable", "busy")
        return reply.status_code == 200

    frail.wait(works_again)
    assert frail.worker_of(node).pid != pid
    (state, tokens), *more = frail.rows(
        "SELECT state, output_tokens FROM receipts WHERE job_id = ?", job_id
    )
    assert not more
    assert (state, tokens > 0) == ("settled", True)
    frail.wait(lambda: not frail.open_holds(but=before))
    frail.assert_sound()


def test_a_node_killed_before_the_first_token_is_not_noticed(frail: FrailMarket) -> None:
    doomed, other = frail.nodes
    assert assert_next_job_works(frail, **only(doomed)).headers["x-capacloud-attempts"] == "1"
    before = frail.open_holds()
    replies: list[httpx.Response] = []

    def buy() -> None:
        with frail.client() as http:
            body = chat_body(provider=order_of(doomed, other))
            replies.append(http.post("/v1/chat/completions", json=body))

    buyer = threading.Thread(target=buy)
    with frail.frozen(doomed):
        buyer.start()
        frail.wait(lambda: len(frail.open_holds(but=before)) == 1)
        frail.kill(doomed)
    buyer.join()
    (reply,) = replies
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-capacloud-node"] == other.peer_id
    assert reply.headers["x-capacloud-attempts"] == "2"
    frail.wait(lambda: len(frail.open_holds(but=before)) == 1)
    assert_bounded(frail.open_holds(but=before), doomed)
    frail.restart(doomed)
    frail.wait_healthy()
    frail.assert_sound()


def test_a_node_killed_after_the_first_token_ends_the_stream_with_an_error(
    frail: FrailMarket,
) -> None:
    other, doomed = frail.nodes
    before = frail.open_holds()
    with frail.client() as http:
        body = chat_body(**LONG, provider=order_of(doomed, other))
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.headers["x-capacloud-node"] == doomed.peer_id
            events = events_of(response.iter_lines())
            read_until_text(events, 3)
            frail.kill(doomed)
            *_, last = events
    assert last["error"]["code"] == "node_lost"
    assert last["error"]["type"] == "server_error"
    assert "Traceback" not in json.dumps(last)
    assert assert_next_job_works(frail).headers["x-capacloud-node"] == other.peer_id
    frail.wait(lambda: len(frail.open_holds(but=before)) == 1)
    assert_bounded(frail.open_holds(but=before), doomed)
    frail.restart(doomed)
    frail.wait_healthy()
    frail.assert_sound()


def test_a_coordinator_killed_with_jobs_in_flight_loses_no_receipt(frail: FrailMarket) -> None:
    before = frail.open_holds()
    acknowledged = frail.rows("SELECT lease_id, amount_nano FROM receipts WHERE state = 'settled'")
    assert acknowledged
    with buying_from_frozen_nodes(frail) as answers:
        in_flight = {hold.lease_id for hold in frail.open_holds(but=before)}
        frail.call(frail.network.coordinator.kill)
    assert len(in_flight) == len(frail.nodes)
    assert all("data: [DONE]" not in lines for lines in answers)
    frail.call(frail.network.start_coordinator)
    frail.wait_healthy()
    assert_next_job_works(frail)

    # The clients died with the coordinator. The receipts are durable at once; they are paid
    # when the jobs' deadlines are over (tests/coordinator/settling/test_lone_receipts.py).
    def receipts() -> dict[str, tuple[str, int]]:
        rows = frail.rows("SELECT lease_id, state, amount_nano FROM receipts")
        return {lease_id: (state, amount_nano) for lease_id, state, amount_nano in rows}

    frail.wait(lambda: in_flight <= receipts().keys())
    settled = receipts()
    assert all(settled[lease_id][1] > 0 for lease_id in in_flight)
    assert all(settled[lease_id] == ("settled", nano) for lease_id, nano in acknowledged)
    frail.assert_sound()
