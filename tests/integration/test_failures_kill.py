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
TOKENS = 100
# Each gives a machine a quarter of a seat, at least, and it needs a second one.
ANSWERS_TO_BE_TRUSTED = 4
# Each token of the answer is far likelier than the next best: where two are equally likely, a node
# that reads the answer so far may choose another one than the node that wrote it. Counting shows
# what is lost or doubled.
QUESTION = {"role": "user", "content": "Count from 1 to 60, with commas."}
WHOLE = {"messages": [QUESTION], "max_tokens": TOKENS}
STREAM = {**WHOLE, "stream": True, "stream_options": {"include_usage": True}}
LONG = {"max_tokens": 2_000, "ignore_eos": True, "stream": True}


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
    """One stream from each node, all frozen at once after some text: no job can end before we
    leave, nor be given up as silent. After leaving, the list has the lines that came since, one
    list for each stream."""
    # Nodes that share a machine and were killed by earlier tests get one job at a time between them
    # until they have answered some: the second stream would wait for the end of the first.
    for node in frail.nodes * ANSWERS_TO_BE_TRUSTED:
        assert_next_job_works(frail, **only(node))
    answers: list[list[str]] = []
    with ExitStack() as streams:
        open_streams = []
        for node in frail.nodes:
            http = streams.enter_context(frail.client())
            body = chat_body(**LONG, provider=only(node))
            request = http.stream("POST", "/v1/chat/completions", json=body)
            response = streams.enter_context(request)
            assert response.status_code == 200
            lines = response.iter_lines()
            read_until_text(events_of(lines), 2)
            open_streams.append(lines)
        with ExitStack() as frozen:
            for node in frail.nodes:
                frozen.enter_context(frail.frozen(node))
            yield answers
        for lines in open_streams:
            received: list[str] = []
            answers.append(received)
            with suppress(httpx.TransportError):
                received.extend(lines)


@pytest.fixture(scope="module")
def unbroken(shared_frail: FrailMarket) -> str:
    """What the model answers if nothing fails."""
    with shared_frail.client() as http:
        reply = http.post("/v1/chat/completions", json=chat_body(**WHOLE))
    assert reply.json()["usage"]["completion_tokens"] == TOKENS
    return str(reply.json()["choices"][0]["message"]["content"])


def read_to_end(lines: Iterator[str]) -> tuple[str, dict[str, Any]]:
    """The rest of the text, and the usage of the whole."""
    text = ""
    usage: dict[str, Any] = {}
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            text += text_of(event)
            usage = event.get("usage") or usage
    return text, usage


def begin(lines: Iterator[str], pieces: int) -> str:
    """The text of so many pieces."""
    text, events = "", events_of(lines)
    while pieces:
        piece = text_of(next(events))
        text, pieces = text + piece, pieces - bool(piece)
    return text


def test_an_answer_whose_worker_is_killed_goes_on_when_it_is_back(
    frail: FrailMarket, unbroken: str
) -> None:
    """No other node may run it."""
    node, before = frail.nodes[0], frail.open_holds()
    pid = frail.worker_of(node).pid
    with frail.client() as http:
        body = chat_body(**STREAM, provider=only(node))
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            job_id = response.headers["x-capacloud-job-id"]
            lines = response.iter_lines()
            text = begin(lines, 3)
            frail.worker_of(node).kill()
            rest, usage = read_to_end(lines)
    assert text + rest == unbroken
    assert usage["completion_tokens"] == TOKENS
    assert frail.worker_of(node).pid != pid

    def paid() -> list[int]:
        query = "SELECT output_tokens FROM receipts WHERE job_id = ? AND state = 'settled'"
        return [tokens for (tokens,) in frail.rows(query, job_id) if tokens]

    frail.wait(lambda: sum(paid()) == TOKENS)  # Each token is paid once.
    assert len(paid()) == 2
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
    # It delivered nothing, and our own gateway knows: what it held is free without its receipt.
    frail.wait(lambda: not frail.open_holds(but=before))
    frail.restart(doomed)
    frail.wait_healthy()
    frail.assert_sound()


def test_a_stream_whose_node_is_killed_goes_on_at_the_other(
    frail: FrailMarket, unbroken: str
) -> None:
    other, doomed = frail.nodes
    before = frail.open_holds()
    with frail.client() as http:
        body = chat_body(**STREAM, provider=order_of(doomed, other))
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.headers["x-capacloud-node"] == doomed.peer_id
            lines = response.iter_lines()
            text = begin(lines, 5)
            frail.kill(doomed)
            rest, usage = read_to_end(lines)
    assert text + rest == unbroken
    assert usage["completion_tokens"] == TOKENS
    frail.wait(lambda: len(frail.open_holds(but=before)) == 1)
    assert_bounded(frail.open_holds(but=before), doomed)
    frail.restart(doomed)
    frail.wait_healthy()
    frail.assert_sound()


def test_an_unstreamed_answer_whose_node_is_killed_is_whole(
    frail: FrailMarket, unbroken: str
) -> None:
    other, doomed = frail.nodes
    before = frail.open_holds()
    replies: list[httpx.Response] = []

    def buy() -> None:
        with frail.client() as http:
            body = chat_body(**WHOLE, provider=order_of(doomed, other))
            replies.append(http.post("/v1/chat/completions", json=body))

    buyer = threading.Thread(target=buy)
    buyer.start()
    worker = frail.worker_of(doomed)
    frail.wait(lambda: len(frail.open_holds(but=before)) == 1)
    began_s = sum(worker.cpu_times()[:2])
    # Its worker has computed something of the answer.
    frail.wait(lambda: sum(worker.cpu_times()[:2]) > began_s + 0.2)
    frail.kill(doomed)
    buyer.join()
    (reply,) = replies
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == unbroken
    assert reply.headers["x-capacloud-node"] == other.peer_id
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
