"""The node never trusts what a worker says: every way to say it wrong has one error."""

import contextlib
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capanode.device_problems import DeviceFailure, DeviceProblem
from capanode.engines.base import Completed, EngineEvent, EngineInfo, Failed, Produced, Started
from capanode.worker.commands import (
    Cancel,
    Command,
    Ping,
    Shutdown,
    Start,
    encode_command,
    parse_command,
)
from capanode.worker.frames import (
    BLOB_BYTES_MAX,
    HEADER_BYTES_MAX,
    FrameBuffer,
    Kind,
    WorkerProtocolError,
    make_frame,
)
from capanode.worker.reports import (
    EVENTS_MAX,
    INLINE_BYTES_MAX,
    Cancelled,
    LoadFailed,
    Pong,
    encode_cancelled,
    encode_device_failed,
    encode_events,
    encode_load_failed,
    encode_pong,
    encode_ready,
    parse_report,
)
from protocol.errors import Code
from protocol.limits import OUTPUT_BYTES_MAX
from protocol.messages import Task
from protocol.pricing import Units

job_ids = st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=1, max_size=26)
counts = st.integers(0, 1_000)
units = st.builds(Units, counts, counts, counts)
token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=20).map(tuple)
data = st.binary(max_size=64) | st.integers(INLINE_BYTES_MAX - 1, INLINE_BYTES_MAX + 2).map(bytes)
digests = st.just("") | st.binary(min_size=32, max_size=32).map(bytes.hex)
ends = st.none() | st.integers(0, 2**31 - 1)
engine_events: st.SearchStrategy[EngineEvent] = st.one_of(
    st.builds(Started, job_ids, units, digests, counts),
    st.builds(Produced, job_ids, token_ids, st.text(max_size=40), data),
    st.builds(Completed, job_ids, st.sampled_from(["stop", "length", "complete"]), units, ends),
    st.builds(Failed, job_ids, st.sampled_from(Code), st.text(max_size=40), units),
)


def parse_all(stream: bytes) -> list[Any]:
    return [parse_report(header, blob) for header, blob in FrameBuffer().feed(stream)]


def frame(header: object, blob: bytes = b"") -> bytes:
    packed: bytes = msgpack.packb(header)
    return struct.pack(">II", len(packed), len(blob)) + packed + blob


@given(st.lists(engine_events, max_size=12), st.data())
def test_events_survive_however_the_stream_is_cut(
    events: list[EngineEvent], choice: st.DataObject
) -> None:
    stream = b"".join(encode_events(events))
    cuts = sorted(choice.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    buffer = FrameBuffer()
    received: list[EngineEvent] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        for header, blob in buffer.feed(stream[start:end]):
            report = parse_report(header, blob)
            assert isinstance(report, list)
            received += report
    assert received == events


def test_one_step_is_one_frame() -> None:
    events = [Produced(f"job{number}", (number,), "word") for number in range(256)]
    assert len(list(encode_events(events))) == 1
    assert list(encode_events([])) == []


def test_step_that_exceeds_a_frame_is_split() -> None:
    events = [Produced(f"job{number}", (), "", bytes(BLOB_BYTES_MAX // 4)) for number in range(9)]
    frames = list(encode_events(events))
    assert len(frames) == 3
    assert [event for report in parse_all(b"".join(frames)) for event in report] == events
    many = [Produced("job", (1,), "x")] * (EVENTS_MAX + 1)
    reports = parse_all(b"".join(encode_events(many)))
    assert len(reports) == 2
    assert [event for report in reports for event in report] == many


@pytest.mark.parametrize(
    "command", [Start("job", b"payload"), Start("job", b""), Cancel("job"), Ping(7), Shutdown()]
)
def test_commands_survive(command: Command) -> None:
    ((header, blob),) = FrameBuffer().feed(encode_command(command))
    assert parse_command(header, blob) == command


def test_other_reports_survive() -> None:
    info = EngineInfo(
        Task.EMBEDDING,
        8,
        512,
        "bf16",
        "bert/1 weights=bf16",
        ("chat",),
        "hermes",
        dimensions=384,
    )
    lost = DeviceFailure(DeviceProblem.DRIVER_LOST, "CUDA 999")
    stream = (
        *(encode_ready(info), encode_pong(3), encode_cancelled("job"), encode_load_failed("no")),
        encode_device_failed(lost),
    )
    heard = [info, Pong(3), Cancelled("job"), LoadFailed("no"), lost]
    assert parse_all(b"".join(stream)) == heard


def test_a_worker_cannot_invent_a_problem_of_its_device() -> None:
    frame = make_frame((Kind.DEVICE_FAILED, "possessed", "boo"))
    with pytest.raises(WorkerProtocolError, match="no known kind"):
        parse_all(frame)


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack(">II", HEADER_BYTES_MAX + 1, 0),
        struct.pack(">II", 1, BLOB_BYTES_MAX + 1),
        struct.pack(">II", 1, 0) + b"\xc1",
        struct.pack(">II", 0, 0),
        frame({}),
        frame([]),
        frame(["text"]),
        frame([99]),
        frame([True]),
        frame([1, "job"]),
        frame([17]),
        frame([17, {}]),
        frame([17, [[]]]),
        frame([17, [[9, "job", 1]]]),
        frame([17, [[0, 5, [0, 0, 0]]]]),
        frame([17, [[0, "x" * 65, [0, 0, 0]]]]),
        frame([17, [[0, "job", [0, 0]]]]),
        frame([17, [[0, "job", [0, -1, 0]]]]),
        frame([17, [[0, "job", [0, 1.5, 0]]]]),
        frame([17, [[0, "job", [2**40, 0, 0]]]]),
        frame([17, [[0, "job", [0, 0, 0], 1]]]),
        frame([17, [[1, "job", [2**31], "", b""]]]),
        frame([17, [[1, "job", [-1], "", b""]]]),
        frame([17, [[1, "job", [True], "", b""]]]),
        frame([17, [[1, "job", [1] * 4_097, "", b""]]]),
        frame([17, [[1, "job", "abc", "", b""]]]),
        frame([17, [[1, "job", [], b"", b""]]]),
        frame([17, [[1, "job", [], "x" * 65_537, b""]]]),
        frame([17, [[1, "job", [], "", "x"]]]),
        frame([17, [[1, "job", [], "", bytes(INLINE_BYTES_MAX + 1)]]]),
        frame([17, [[1, "job", [], "", 5_000]]], bytes(4_999)),
        frame([17, [[1, "job", [], "", 5_000]]], bytes(5_001)),
        frame([17, [[1, "job", [], "", -1]]]),
        frame([17, [[1, "job", [], "", OUTPUT_BYTES_MAX + 1]]], bytes(OUTPUT_BYTES_MAX + 1)),
        frame([17, [[2, "job", "because", [0, 0, 0]]]]),
        frame([17, [[3, "job", "no_such_code", "", [0, 0, 0]]]]),
        frame([17, []], b"x"),
        frame([17, [[0, "job", [0, 0, 0]]] * (EVENTS_MAX + 1)]),
        frame([17, []]),
        frame([17, [[0, "job", [0] * 5_000]]]),
        frame([17, [{"job": 1}]]),
        frame([16, "poetry", 1, 1, ""]),
        frame([16, "causal_lm", 0, 1, ""]),
        frame([16, "causal_lm", 1, -1, ""]),
        frame([16, "causal_lm", 1, 1, "x" * 200]),
        frame([18, "one"]),
        frame([18, 1], b"x"),
        frame([17, msgpack.ExtType(4, b"x")]),
    ],
)
def test_what_no_worker_says_is_refused(stream: bytes) -> None:
    with pytest.raises(WorkerProtocolError):
        parse_all(stream)


@given(st.binary(max_size=200))
def test_garbage_never_does_worse(garbage: bytes) -> None:
    try:
        parse_all(garbage)
        parse_all(frame([17]) + garbage)
    except WorkerProtocolError:
        pass


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text()
        | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=12,
    ),
    st.sampled_from([16, 17, 18, 19, 20, 21]),
)  # fmt: skip
def test_well_formed_nonsense_never_does_worse(value: Any, kind: int) -> None:
    for header in (value, [kind, value], [17, [[kind % 4, "job", value, value, value]]]):
        with contextlib.suppress(WorkerProtocolError):
            parse_report(header, memoryview(b""))


def test_unfinished_frame_waits_without_growing_beyond_itself() -> None:
    buffer = FrameBuffer()
    stream = encode_command(Start("job", bytes(1_000_000)))
    frames = []
    for at in range(0, len(stream), 65_536):
        frames += buffer.feed(stream[at : at + 65_536])
    ((header, blob),) = frames
    assert parse_command(header, blob) == Start("job", bytes(1_000_000))
