"""Windows of streams in a worker: what is kept for whom, and when it is refused or forgotten."""

import struct
from collections.abc import Iterator, Sequence

import pytest

from capanode.engines.base import (
    Completed,
    EngineEvent,
    EngineInfo,
    EngineInput,
    EngineRefusal,
    Failed,
    Produced,
    Started,
)
from capanode.worker import stream_windows
from capanode.worker.commands import Cancel, Start
from capanode.worker.reports import Cancelled
from capanode.worker.stream_windows import IDLE_MAX_S, StreamWindows
from protocol.codec import encode
from protocol.errors import Code, RemoteProtocolError
from protocol.features import Feature
from protocol.limits import STREAM_WINDOW_BYTES_MAX
from protocol.messages import Task
from protocol.pricing import Units
from protocol.tensors import (
    Datatype,
    ModelSignature,
    NamedTensor,
    StreamPlace,
    TensorInput,
    TensorMetadata,
)
from tests.capanode.worker_thread import WorkerThread

STREAM = bytes(16)
WINDOW_ROWS = 4


def rows(numbers: Sequence[float], *, width: int = 1) -> NamedTensor:
    data = b"".join(struct.pack("<f", number) * width for number in numbers)
    return NamedTensor("x", Datatype.FP32, (len(numbers), width), data)


def part(
    first: int,
    count: int,
    *,
    context: int | None = None,
    stream: bytes = STREAM,
    width: int = 1,
) -> TensorInput:
    """Rows that are their own numbers; without a context the job goes on from what is kept."""
    start = first - (context or 0)
    return TensorInput(
        (rows(range(start, first + count), width=width),),
        context_rows=context or 0,
        place=StreamPlace(stream, first, is_continued=context is None),
    )


def numbers_of(job_input: TensorInput) -> list[float]:
    (tensor,) = job_input.inputs
    return [n for (n,) in struct.iter_unpack("<f", tensor.data)]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def windows(clock: Clock) -> StreamWindows:
    return StreamWindows(WINDOW_ROWS - 1, clock)


def answer(windows: StreamWindows, job_input: TensorInput, *, client: str = "a") -> TensorInput:
    whole = windows.enter("job", client, job_input)
    windows.note_events([Completed("job", "complete", Units())])
    return whole


def refusal(windows: StreamWindows, job_input: TensorInput, *, client: str = "a") -> Code:
    with pytest.raises(RemoteProtocolError) as refused:
        windows.enter("refused", client, job_input)
    return refused.value.code


def test_a_job_goes_on_from_the_rows_before(windows: StreamWindows) -> None:
    assert answer(windows, part(0, 2, context=0)).context_rows == 0
    following = answer(windows, part(2, 3))
    assert (following.context_rows, numbers_of(following)) == (2, [0, 1, 2, 3, 4])
    assert following.elements == 3
    last = answer(windows, part(5, 9))
    assert (last.context_rows, numbers_of(last)[:3]) == (3, [2, 3, 4])
    assert last.place is None


def test_a_context_that_is_sent_is_kept_too(windows: StreamWindows) -> None:
    answer(windows, part(100, 1, context=2))
    assert numbers_of(answer(windows, part(101, 1))) == [98, 99, 100, 101]


def test_a_job_without_a_place_passes_as_it_is(windows: StreamWindows) -> None:
    plain = TensorInput((rows([1, 2]),), context_rows=1)
    assert answer(windows, plain) is plain


def test_rows_that_are_not_exactly_those_before_are_missing(windows: StreamWindows) -> None:
    assert refusal(windows, part(2, 1)) is Code.STATE_MISSING
    answer(windows, part(0, 2, context=0))
    for first in (0, 1, 3):
        assert refusal(windows, part(first, 1)) is Code.STATE_MISSING
    answer(windows, part(2, 1))


def test_another_client_does_not_reach_a_stream(windows: StreamWindows) -> None:
    answer(windows, part(0, 2, context=0))
    assert refusal(windows, part(2, 1), client="b") is Code.STATE_MISSING
    answer(windows, part(0, 2, context=0), client="b")
    # Each has its own rows under the same id.
    assert numbers_of(answer(windows, part(2, 1))) == [0, 1, 2]


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_job_that_is_not_answered_leaves_the_rows_before(
    windows: StreamWindows, is_cancelled: bool
) -> None:
    answer(windows, part(0, 2, context=0))
    windows.enter("job", "a", part(2, 1))
    if is_cancelled:
        windows.leave("job")
    else:
        windows.note_events([Failed("job", Code.INTERNAL, "", Units())])
    assert numbers_of(answer(windows, part(2, 1))) == [0, 1, 2]


def test_rows_of_another_form_are_refused(windows: StreamWindows) -> None:
    answer(windows, part(0, 2, context=0))
    assert refusal(windows, part(2, 1, width=2)) is Code.INVALID_INPUT


def test_an_idle_stream_is_forgotten(windows: StreamWindows, clock: Clock) -> None:
    answer(windows, part(0, 1, context=0))
    clock.now_s = IDLE_MAX_S - 1
    answer(windows, part(1, 1))
    clock.now_s += IDLE_MAX_S
    assert refusal(windows, part(2, 1)) is Code.STATE_MISSING


def test_the_streams_of_a_client_are_bounded(
    windows: StreamWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_windows, "STREAMS_PER_CLIENT_MAX", 3)
    answer(windows, part(0, 1, context=0), client="other")
    streams = [bytes([number]) * 16 for number in range(4)]
    for stream in streams:
        answer(windows, part(0, 1, context=0, stream=stream))
    assert refusal(windows, part(1, 1, stream=streams[0])) is Code.STATE_MISSING
    for stream in streams[1:]:
        answer(windows, part(1, 1, stream=stream))
    answer(windows, part(1, 1), client="other")


def test_all_kept_bytes_are_bounded(
    windows: StreamWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_windows, "KEPT_BYTES_MAX", 3 * 3 * 4)
    clients = [str(number) for number in range(4)]
    for client in clients:
        answer(windows, part(0, 3, context=0), client=client)
    assert refusal(windows, part(3, 1), client="0") is Code.STATE_MISSING
    for client in clients[1:]:
        answer(windows, part(3, 1), client=client)


def test_a_window_that_is_too_large_is_not_kept(windows: StreamWindows) -> None:
    width = STREAM_WINDOW_BYTES_MAX // 4 // 3
    answer(windows, part(0, 3, context=0, width=width))
    answer(windows, part(3, 1, width=width))
    answer(windows, part(0, 3, context=0, stream=bytes([1]) * 16, width=width + 1))
    too_large = part(3, 1, stream=bytes([1]) * 16, width=width + 1)
    assert refusal(windows, too_large) is Code.STATE_MISSING


class RowsEngine:
    """Answers a job with its rows, context and all, in its second step."""

    def __init__(self, window_rows: int) -> None:
        tensors = (TensorMetadata("x", Datatype.FP32, (-1, 1)),)
        signature = ModelSignature(tensors, tensors, window_rows)
        self.info = EngineInfo(Task.TENSOR, 4, 0, "fp32", signature=signature)
        self._jobs: dict[str, TensorInput] = {}
        self._begun: set[str] = set()

    @property
    def is_idle(self) -> bool:
        return not self._jobs

    def slow_reading(self, job_input: EngineInput) -> None:
        """All inputs are read by `submit`."""

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        assert isinstance(job_input, TensorInput)
        if job_input.inputs[0].name != "x":
            raise EngineRefusal("no input of this model", code=Code.INVALID_INPUT)
        self._jobs[job_id] = job_input

    def cancel(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    def step(self) -> Sequence[EngineEvent]:
        events: list[EngineEvent] = []
        for job_id, job_input in tuple(self._jobs.items()):
            if job_id not in self._begun:
                self._begun.add(job_id)
                events.append(Started(job_id, Units(tensor_elements=job_input.elements)))
                continue
            del self._jobs[job_id]
            events.append(Produced(job_id, (), "", job_input.inputs[0].data))
            events.append(Completed(job_id, "complete", Units()))
        return events


@pytest.fixture
def worker() -> Iterator[WorkerThread]:
    worker = WorkerThread(RowsEngine(WINDOW_ROWS))
    yield worker
    worker.close()


def start(job_id: str, job_input: TensorInput, client: str = "a") -> Start:
    return Start(job_id, encode(job_input), client=client)


def test_a_worker_keeps_the_window_of_what_it_answered(worker: WorkerThread) -> None:
    worker.start(start("1", part(0, 2, context=0)))
    worker.hear(3)
    worker.tell(start("2", part(2, 2)))
    started, produced, _ = worker.hear(3)
    assert started.input_units == Units(tensor_elements=2)
    assert produced.data == rows(range(4)).data
    worker.tell(start("3", part(4, 1), client="b"))
    (failed,) = worker.hear(1)
    assert (failed.code, failed.units) == (Code.STATE_MISSING, Units())


def test_a_cancelled_job_of_a_worker_leaves_the_window(worker: WorkerThread) -> None:
    worker.start(start("1", part(0, 2, context=0)))
    worker.hear(3)
    worker.tell(start("2", part(2, 1)), Cancel("2"))
    while not any(report == Cancelled("2") for report in worker.hear(1)):
        pass
    worker.tell(start("3", part(2, 1)))
    _, produced, _ = worker.hear(3)
    assert produced.data == rows(range(3)).data


def test_only_a_model_with_a_window_keeps_windows() -> None:
    assert StreamWindows.of_engine(RowsEngine(2).info, Clock()).features == (
        Feature.STREAM_WINDOWS,
    )
    assert not StreamWindows.of_engine(RowsEngine(0).info, Clock()).features
