"""Streams of records: answered in order, once each, whatever becomes of nodes and readers."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from coordinator.buyer.errors import JobFailed
from coordinator.gateway.http.oip.streaming import PENDING_MAX
from protocol.errors import Code
from protocol.features import Feature
from protocol.messages import Task
from protocol.tensors import StreamPlace, TensorInput
from tests.coordinator.gateway.fake_market import (
    API_KEY,
    LIMITED_KEY,
    NAMES,
    NODE_KEY,
    PRICE,
    SIGNATURE,
    Script,
)
from tests.coordinator.gateway.harness import Harness

SUMS = NAMES[Task.TENSOR]
OPEN = {"type": "open", "model": SUMS, "outputs": ["sum"]}
CLOSE = {"type": "close"}


def record(*rows: list[float], **more: Any) -> dict[str, Any]:
    shape = [len(rows), 2]
    data = [number for row in rows for number in row]
    return {
        "type": "record",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": data}],
        **more,
    }


class Socket:
    """A WebSocket as the application sees it."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send(self, *messages: Any) -> None:
        for message in messages:
            self.incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    async def hear(self) -> dict[str, Any]:
        """The next message; the end is one, too."""
        message = await self.outgoing.get()
        if message["type"] == "websocket.accept":
            message = await self.outgoing.get()
        if message["type"] == "websocket.send":
            heard: dict[str, Any] = json.loads(message["text"])
            return heard
        return message

    async def hear_all(self) -> list[dict[str, Any]]:
        """Until the end."""
        heard = [await self.hear()]
        while not heard[-1]["type"].startswith("websocket."):
            heard.append(await self.hear())
        return heard


@asynccontextmanager
async def connected(
    gateway: Harness, *, key: str = API_KEY, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> AsyncIterator[Socket]:
    found = Socket()
    scope = {
        "type": "websocket",
        "path": "/v1/stream",
        "headers": [(b"authorization", f"Bearer {key}".encode()), *headers],
    }
    found.incoming.put_nowait({"type": "websocket.connect"})
    task = asyncio.ensure_future(gateway.app(scope, found.incoming.get, found.outgoing.put))
    try:
        yield found
    finally:
        found.incoming.put_nowait({"type": "websocket.disconnect"})
        await task


def talk(gateway: Harness, *messages: Any, key: str = API_KEY) -> list[dict[str, Any]]:
    async def run() -> list[dict[str, Any]]:
        async with connected(gateway, key=key) as socket:
            socket.send(*messages)
            return await socket.hear_all()

    return gateway.run(run())


def predictions(heard: list[dict[str, Any]]) -> list[tuple[int, list[float]]]:
    return [
        (message["sequence"], message["outputs"][0]["data"])
        for message in heard
        if message["type"] == "prediction"
    ]


def inputs(gateway: Harness) -> list[TensorInput]:
    found = [spec.job_input for spec in gateway.market.specs]
    assert all(isinstance(job_input, TensorInput) for job_input in found)
    return found  # type: ignore[return-value]


def numbers(job_input: TensorInput) -> list[float]:
    (tensor,) = job_input.inputs
    return list(struct.unpack(f"<{tensor.elements}f", tensor.data))[::2]


def test_records_are_answered_in_order_and_metered_once(gateway: Harness) -> None:
    heard = talk(gateway, OPEN, *(record([n, 1], id=f"r{n}") for n in range(40)), CLOSE)
    opened, *answers, closed, end = heard
    assert (opened["type"], opened["window_rows"]) == ("opened", SIGNATURE.window_rows)
    assert opened["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert predictions(answers) == [(n, [n + 1.0]) for n in range(40)]
    assert [answer["id"] for answer in answers] == [f"r{n}" for n in range(40)]
    assert all(answer["elements"] == 2 for answer in answers)
    jobs = inputs(gateway)
    # What arrived while the first was on its way went together.
    assert len(jobs) < 40
    assert sum(job.elements for job in jobs) == 80
    cost = sum(-(-job.elements * PRICE.tensor_nano_per_kelement // 1_000) for job in jobs)
    assert closed == {"type": "closed", "records": 40, "elements": 80, "cost_nano": cost}
    assert sum(answer.get("cost_nano", 0) for answer in answers) == cost
    assert end == {"type": "websocket.close", "code": 1000}


def test_each_job_brings_the_rows_before_it(gateway: Harness) -> None:
    talk(gateway, OPEN, *(record([n, 0]) for n in range(9)), CLOSE)
    at = 0
    for job in inputs(gateway):
        context = min(at, SIGNATURE.window_rows - 1)
        assert job.context_rows == context
        rows = numbers(job)
        assert rows == [float(n) for n in range(at - context, at - context + len(rows))]
        at += len(rows) - context
    assert at == 9


def test_a_stream_goes_on_from_the_records_before_a_break(gateway: Harness) -> None:
    heard = talk(gateway, OPEN, record([7, 0], [8, 0], context=True), record([9, 0]), CLOSE)
    assert predictions(heard) == [(0, [9.0])]
    (job,) = inputs(gateway)
    assert (job.context_rows, numbers(job)) == (2, [7.0, 8.0, 9.0])
    assert heard[-2]["elements"] == 2


def test_series_do_not_see_each_others_rows(gateway: Harness) -> None:
    def of(series: int, number: float, **more: Any) -> dict[str, Any]:
        return record([number, 0], parameters={"sequence_id": series, **more})

    talk(gateway, OPEN, of(1, 1), of(2, 20), of(1, 2), of(2, 21, sequence_start=True), CLOSE)
    found = [(job.context_rows, numbers(job)) for job in inputs(gateway)]
    assert found == [(0, [1.0]), (0, [20.0]), (1, [1.0, 2.0]), (0, [21.0])]


def test_a_node_that_fails_costs_no_record(gateway: Harness) -> None:
    lost = JobFailed("the node is gone", code=Code.NODE_LOST)
    gateway.market.script = Script(failure=lost, failing_job=0)
    heard = talk(gateway, OPEN, *(record([n, 0]) for n in range(5)), CLOSE)
    assert predictions(heard) == [(n, [float(n)]) for n in range(5)]
    jobs = inputs(gateway)
    # Only what was not answered is asked again.
    assert (jobs[0], numbers(jobs[0])) == (jobs[1], [0.0])
    assert heard[-2]["records"] == 5


def whole_rows(count: int) -> list[float]:
    return [float(n) for n in range(count)]


def computed(gateway: Harness) -> list[tuple[list[float], list[float]]]:
    """The rows that nodes looked at, job by job: those of the window, and those answered."""
    found = []
    for job_input in gateway.market.computed:
        rows = numbers(job_input)
        found.append((rows[: job_input.context_rows], rows[job_input.context_rows :]))
    return found


def assert_unbroken(gateway: Harness, count: int) -> None:
    """Each row was answered once, after the rows before it."""
    at = 0
    for context, rows in computed(gateway):
        assert context == whole_rows(at)[-(SIGNATURE.window_rows - 1) :]
        assert rows == whole_rows(at + len(rows))[at:]
        at += len(rows)
    assert at == count


def one_by_one(
    gateway: Harness, count: int, *, before: Callable[[int], object] = lambda number: None
) -> list[dict[str, Any]]:
    """Each record is sent when the one before it is answered."""

    async def run() -> list[dict[str, Any]]:
        async with connected(gateway) as socket:
            socket.send(OPEN)
            heard = [await socket.hear()]
            for number in range(count):
                before(number)
                socket.send(record([number, 0]))
                heard.append(await socket.hear())
            socket.send(CLOSE)
            return heard + await socket.hear_all()

    return gateway.run(run())


def test_a_node_that_keeps_the_window_gets_new_rows_only(gateway: Harness) -> None:
    gateway.market.keep_windows()
    heard = one_by_one(gateway, 6)
    assert predictions(heard) == [(n, [float(n)]) for n in range(6)]
    assert_unbroken(gateway, 6)
    first, *others = gateway.market.specs
    assert isinstance(first.job_input, TensorInput)
    begun = first.job_input.place
    assert begun is not None
    assert begun == StreamPlace(begun.stream_id, 0)
    for number, spec in enumerate(others, 1):
        assert isinstance(spec.job_input, TensorInput)
        place = replace(begun, first_row=number, is_continued=True)
        assert (spec.job_input.place, numbers(spec.job_input)) == (place, [float(number)])
        # Its own node if that is free, and only one that knows what is asked of it.
        assert spec.constraints.order == (NODE_KEY.peer_id,)
        assert spec.constraints.features == (Feature.STREAM_WINDOWS,)
    assert (heard[-2]["records"], heard[-2]["elements"]) == (6, 12)


def test_a_node_that_lost_the_window_is_sent_it_again(gateway: Harness) -> None:
    gateway.market.keep_windows()

    def forget(number: int) -> None:
        if number in (2, 4):
            gateway.market.keep_windows()

    heard = one_by_one(gateway, 6, before=forget)
    assert predictions(heard) == [(n, [float(n)]) for n in range(6)]
    assert_unbroken(gateway, 6)
    # The two that were refused were sent again, with the window; nothing else was.
    sent = [(job.context_rows, numbers(job)) for job in inputs(gateway)]
    assert [s for s in sent if s[0]] == [(2, [0.0, 1.0, 2.0]), (2, [2.0, 3.0, 4.0])]
    assert len(sent) == 8
    # What was looked at again is not charged again.
    cost = 6 * -(-2 * PRICE.tensor_nano_per_kelement // 1_000)
    assert heard[-2] == {"type": "closed", "records": 6, "elements": 12, "cost_nano": cost}


def test_a_node_that_dies_with_the_window_costs_no_record(gateway: Harness) -> None:
    gateway.market.keep_windows()
    lost = JobFailed("the node is gone", code=Code.NODE_LOST)

    def die(number: int) -> None:
        if number == 3:
            gateway.market.keep_windows()
            gateway.market.script = Script(failure=lost, failing_job=3)

    heard = one_by_one(gateway, 6, before=die)
    assert predictions(heard) == [(n, [float(n)]) for n in range(6)]
    assert_unbroken(gateway, 6)
    again = gateway.market.specs[4]
    assert isinstance(again.job_input, TensorInput)
    assert (again.job_input.context_rows, again.constraints.order) == (2, ())


@pytest.mark.parametrize("code", [Code.NO_NODE_FITS, Code.UNKNOWN_MODEL])
def test_a_stream_that_has_begun_waits_for_a_node(gateway: Harness, code: Code) -> None:
    none_fits = JobFailed("no node fits", code=code)

    def leave(number: int) -> None:
        gateway.market.script = Script(failure=none_fits if number == 2 else None, failing_job=2)

    heard = one_by_one(gateway, 4, before=leave)
    assert predictions(heard) == [(n, [float(n)]) for n in range(4)]
    assert_unbroken(gateway, 4)


def test_a_stream_that_no_node_can_begin_is_told_so(gateway: Harness) -> None:
    gateway.market.script = Script(failure=JobFailed("no node fits", code=Code.NO_NODE_FITS))
    heard = talk(gateway, OPEN, record([1, 0]), CLOSE)
    assert heard[1]["error"]["code"] == "no_node_fits"


def test_a_node_that_never_has_the_window_is_not_asked_for_it_for_ever(gateway: Harness) -> None:
    gateway.market.keep_windows()
    heard = one_by_one(gateway, 9, before=lambda number: gateway.market.keep_windows())
    assert predictions(heard) == [(n, [float(n)]) for n in range(9)]
    continued = [job for job in inputs(gateway) if job.place and job.place.is_continued]
    assert len(continued) == 3


def test_rows_of_a_break_go_to_the_node_with_the_next_record(gateway: Harness) -> None:
    gateway.market.keep_windows()
    messages = (record([0, 0]), record([7, 0], [8, 0], context=True), record([9, 0]))
    talk(gateway, OPEN, *messages, record([10, 0]), CLOSE)
    assert computed(gateway) == [([], [0.0]), ([7.0, 8.0], [9.0, 10.0])]


def test_each_series_has_its_own_window_at_the_node(gateway: Harness) -> None:
    gateway.market.keep_windows()

    def of(series: int, number: float, **more: Any) -> dict[str, Any]:
        return record([number, 0], parameters={"sequence_id": series, **more})

    parts = (of(1, 1), of(2, 20), of(1, 2), of(2, 21), of(1, 3, sequence_start=True), of(1, 4))
    talk(gateway, OPEN, *parts, CLOSE)
    assert computed(gateway)[:4] == [([], [1.0]), ([], [20.0]), ([1.0], [2.0]), ([20.0], [21.0])]
    ids = {job.place.stream_id for job in inputs(gateway) if job.place}
    assert len(ids) == 3


def test_a_market_that_fails_for_good_ends_the_stream(gateway: Harness) -> None:
    lost = JobFailed("no money", code=Code.OUT_OF_FUNDS)
    gateway.market.script = Script(failure=lost)
    heard = talk(gateway, OPEN, record([1, 0]), CLOSE)
    assert heard[-2]["error"]["type"] == "insufficient_quota"
    assert heard[-1]["code"] == 1008
    assert len(gateway.market.specs) == 1


def test_a_wrong_record_is_told_in_its_turn_and_the_stream_goes_on(gateway: Harness) -> None:
    wrong = record([1, 2]) | {
        "inputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1]}]
    }
    heard = talk(gateway, OPEN, record([1, 0]), wrong, {"type": "record"}, record([4, 0]), CLOSE)
    kinds = [(message["type"], message.get("sequence")) for message in heard[1:5]]
    assert kinds == [("prediction", 0), ("error", 1), ("error", 2), ("prediction", 3)]
    assert heard[2]["error"]["message"] == "the model's input x is missing"
    assert heard[3]["error"]["message"] == "you must give inputs"


def test_a_sender_waits_while_too_much_waits(gateway: Harness) -> None:
    gateway.market.script = Script(gate_before=0)

    async def run() -> tuple[int, list[dict[str, Any]]]:
        async with connected(gateway) as socket:
            socket.send(OPEN, *(record([n, 0]) for n in range(3 * PENDING_MAX)), CLOSE)
            await gateway.wait(gateway.market.waiting)
            left = socket.incoming.qsize()
            for _ in range(1_000):
                await asyncio.sleep(0)
            left = socket.incoming.qsize()
            gateway.market.script.gate_before = None
            gateway.in_trio(gateway.market.gate.set)
            return left, await socket.hear_all()

    left, heard = gateway.run(run())
    # One is being answered, one waits to be put.
    assert left == 3 * PENDING_MAX + 1 - (PENDING_MAX + 2)
    assert predictions(heard) == [(n, [float(n)]) for n in range(3 * PENDING_MAX)]


def test_a_client_that_leaves_cancels_its_job(gateway: Harness) -> None:
    gateway.market.script = Script(gate_before=0)

    async def run() -> None:
        async with connected(gateway) as socket:
            socket.send(OPEN, record([1, 0]))
            await gateway.wait(gateway.market.waiting)
        await gateway.wait(gateway.market.cancellation)

    gateway.run(run())
    assert gateway.market.cancelled == 1


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([record([1, 0])], "the first message has type open"),
        ([{"type": "open", "model": "none"}], "no node offers 'none' now"),
        ([OPEN, {"type": "what"}], "a message has type record or close"),
        ([{"type": "open"}], "you must give model"),
    ],
)
def test_what_is_no_stream_is_told(gateway: Harness, messages: Any, words: str) -> None:
    *_, error, end = talk(gateway, *messages)
    assert error["error"]["message"] == words
    assert end["code"] == 1008


def test_a_wrong_key_gets_an_answer_to_its_handshake(gateway: Harness) -> None:
    async def run() -> tuple[dict[str, Any], dict[str, Any]]:
        async with connected(gateway, key="nothing") as socket:
            return await socket.hear(), await socket.hear()

    start, body = gateway.run(run())
    assert start["status"] == 401
    assert json.loads(body["body"])["error"]["code"] == "invalid_api_key"


def test_a_stream_takes_no_idempotency_key(gateway: Harness) -> None:
    async def run() -> dict[str, Any]:
        async with connected(gateway, headers=((b"idempotency-key", b"k"),)) as socket:
            return await socket.hear()

    assert gateway.run(run())["status"] == 400


def test_a_stream_counts_as_one_request_of_its_key(gateway: Harness) -> None:
    for _ in range(2):
        heard = talk(gateway, OPEN, *(record([n, 0]) for n in range(5)), CLOSE, key=LIMITED_KEY)
        assert heard[-2]["records"] == 5
    (start, _body) = talk(gateway, OPEN, key=LIMITED_KEY)[:1] * 2
    assert start["status"] == 429


def test_a_text_comes_in_pieces(gateway: Harness) -> None:
    prompt = {
        "type": "record",
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hello"]}],
        "parameters": {"max_tokens": 8},
    }
    heard = talk(gateway, {"type": "open", "model": NAMES[Task.CAUSAL_LM]}, prompt, CLOSE)
    pieces = [m for m in heard if m["type"] == "prediction"]
    assert "".join(m["outputs"][0]["data"][0] for m in pieces) == "".join(Script().tokens)
    assert {m["sequence"] for m in pieces} == {0}
    assert [m.get("is_final", True) for m in pieces] == [False] * (len(pieces) - 1) + [True]
