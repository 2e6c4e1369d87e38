"""The node's book of a worker's jobs, and the reader that most callers use."""

import pytest
import trio

from capanode.engines.base import Completed, EngineEvent, EngineInfo, Failed, Produced, Started
from capanode.worker.allowance import DEFAULT_TERMS, RunTerms
from capanode.worker.frames import WorkerProtocolError
from capanode.worker.jobs import (
    JOBS_MAX,
    QUEUED_EVENTS_MAX,
    EventSink,
    JobBook,
    WorkerExit,
    WorkerState,
    open_job,
)
from protocol.errors import Code, RemoteProtocolError
from protocol.limits import OUTPUT_BYTES_MAX
from protocol.pricing import Units

STARTED = Started("job", Units(input_tokens=3))
WORD = Produced("job", (5,), "word")
FINISHED = Completed("job", "stop", Units(3, 1))


def make_book() -> tuple[JobBook, list[EngineEvent]]:
    book, seen = JobBook(), list[EngineEvent]()
    book.add("job", seen.append)
    return book, seen


def test_events_reach_their_job_in_order() -> None:
    book, seen = make_book()
    others: list[EngineEvent] = []
    book.add("other", others.append)
    book.deliver([STARTED, Started("other", Units()), WORD, FINISHED])
    assert seen == [STARTED, WORD, FINISHED]
    assert others == [Started("other", Units())]
    assert book.live_jobs == 1


@pytest.mark.parametrize(
    "events",
    [
        [WORD],
        [FINISHED],
        [STARTED, STARTED],
        [STARTED, FINISHED, WORD],
        [Started("unknown", Units())],
        [STARTED, *[Produced("job", (), "", bytes(OUTPUT_BYTES_MAX // 2))] * 3],
        [STARTED, *[Produced("job", tuple(range(4_000)), "")] * 300],
        [STARTED, Produced("job", (), "")],
    ],
)
def test_events_that_make_no_sense_are_refused(events: list[EngineEvent]) -> None:
    book, _ = make_book()
    with pytest.raises(WorkerProtocolError):
        book.deliver(events)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([Produced("job", (1, 2, 3, 4), "")], "more than 3 tokens"),
        ([Produced("job", (1,), "")] * 4, "more than 3 tokens"),
        ([Produced("job", (), "x")] * (RunTerms(output_tokens_max=3).events_max + 1), "pieces"),
        ([Produced("job", (), "", bytes(OUTPUT_BYTES_MAX)), WORD], "bytes"),
    ],
)
def test_job_answers_no_more_than_it_was_started_for(events: list[EngineEvent], words: str) -> None:
    book, seen = JobBook(), list[EngineEvent]()
    book.add("job", seen.append, RunTerms(output_tokens_max=3))
    book.deliver([STARTED, *events[:-1]])
    with pytest.raises(WorkerProtocolError, match=words):
        book.deliver(events[-1:])
    assert len(seen) == len(events)


def test_cancelled_job_cannot_be_spoken_of_without_end() -> None:
    book, seen = JobBook(), list[EngineEvent]()
    terms = RunTerms(output_tokens_max=3)
    book.add("job", seen.append, terms)
    book.remove("job")
    book.deliver([STARTED, *[WORD] * terms.events_max, FINISHED])
    with pytest.raises(WorkerProtocolError, match="cancelled"):
        book.deliver([WORD])
    assert seen == []


def test_job_may_fail_before_it_starts() -> None:
    book, seen = make_book()
    refusal = Failed("job", Code.PROMPT_TOO_LONG, "too long", Units())
    book.deliver([refusal])
    assert seen == [refusal]
    assert book.is_empty


def test_cancelled_job_hears_nothing_and_its_id_is_free_at_once() -> None:
    book, old = make_book()
    book.deliver([STARTED])
    assert book.remove("job")
    new: list[EngineEvent] = []
    book.add("job", new.append)
    book.deliver([WORD, FINISHED])
    book.confirm_removal("job")
    book.deliver([STARTED, WORD])
    assert old == [STARTED]
    assert new == [STARTED, WORD]


def test_each_cancellation_waits_for_its_own_confirmation() -> None:
    book, _ = make_book()
    book.remove("job")
    book.add("job", lambda event: None)
    book.remove("job")
    book.confirm_removal("job")
    is_empty = [book.is_empty]
    book.deliver([WORD])
    book.confirm_removal("job")
    is_empty.append(book.is_empty)
    assert is_empty == [False, True]
    with pytest.raises(WorkerProtocolError):
        book.confirm_removal("job")


def test_cancelled_and_confirmed_are_counted_until_the_process_is_gone() -> None:
    book, _ = make_book()
    book.add("other", lambda event: None)
    book.remove("job")
    book.remove("other")
    book.confirm_removal("job")
    assert (book.cancelled, book.confirmed) == (2, 1)
    book.forget_cancelled()
    assert (book.cancelled, book.confirmed) == (2, 2)
    assert book.is_empty


def test_unknown_job_cannot_be_removed() -> None:
    book = JobBook()
    assert not book.remove("job")
    assert book.is_empty


def test_same_job_twice_and_too_many_jobs_are_refused() -> None:
    book, _ = make_book()
    with pytest.raises(RemoteProtocolError) as twice:
        book.add("job", lambda event: None)
    assert twice.value.code is Code.ALREADY_EXISTS
    for number in range(JOBS_MAX - 1):
        book.add(f"job{number}", lambda event: None)
    with pytest.raises(RemoteProtocolError) as full:
        book.add("one more", lambda event: None)
    assert full.value.code is Code.BUSY


def test_crash_ends_every_job_with_what_it_delivered() -> None:
    book, seen = make_book()
    book.deliver([STARTED, WORD, WORD])
    book.fail_all(Code.WORKER_CRASHED, "gone")
    assert seen[-1] == Failed("job", Code.WORKER_CRASHED, "gone", Units(output_tokens=2))
    assert book.is_empty


class BookWorker:
    """A worker without an engine: the test says what happens."""

    def __init__(self) -> None:
        self.book = JobBook()
        self.cancelled: list[str] = []
        self.state = WorkerState.READY
        self.info: EngineInfo | None = None
        self.last_ending: WorkerExit | None = None

    def submit(
        self, job_id: str, payload: bytes, sink: EventSink, *, terms: RunTerms = DEFAULT_TERMS
    ) -> None:
        self.book.add(job_id, sink)

    def cancel(self, job_id: str) -> None:
        if self.book.remove(job_id):
            self.cancelled.append(job_id)


async def test_reader_gets_every_event_and_then_the_end() -> None:
    worker = BookWorker()
    seen: list[EngineEvent] = []
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            async with open_job(worker, "job", b"") as events:
                seen.extend([event async for event in events])

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        worker.book.deliver([STARTED])
        await trio.testing.wait_all_tasks_blocked()
        worker.book.deliver([WORD, FINISHED])
    assert seen == [STARTED, WORD, FINISHED]
    assert worker.cancelled == []


async def test_reader_that_leaves_early_cancels() -> None:
    worker = BookWorker()
    with trio.move_on_after(0):
        async with open_job(worker, "job", b"") as events:
            await anext(events)
    assert worker.cancelled == ["job"]


async def test_reader_that_stops_reading_loses_its_job_only() -> None:
    worker = BookWorker()
    async with open_job(worker, "job", b"") as events:
        worker.book.deliver([STARTED, *[WORD] * (QUEUED_EVENTS_MAX + 10)])
        seen = [event async for event in events]
    assert worker.cancelled == ["job"]
    assert len(seen) == QUEUED_EVENTS_MAX + 1
    units = Units(output_tokens=QUEUED_EVENTS_MAX - 1)
    assert seen[-1] == Failed("job", Code.BUSY, "the reader stopped reading", units)
