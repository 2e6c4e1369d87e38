import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from PIL import Image
from trio.testing import MockClock

from capanode.benchmark import KEPT_MAX, Measurement, SpeedCache, measure_speed, speed_key
from capanode.engines.base import Completed, EngineInfo, Failed, Produced, Started
from capanode.errors import BenchmarkError
from capanode.measurements import Speed, grey_png
from protocol.errors import Code
from protocol.messages import Task
from protocol.offers import Hardware
from protocol.payload import EmbeddingInput, ImageInput
from protocol.pricing import Units
from protocol.tasks import decode_input
from tests.capanode.fakes import STEP_S, FakeWorker
from tests.protocol.makers import MODEL

HARDWARE = Hardware("cpu", "two cores", 1, 1)


class OneShotWorker(FakeWorker):
    """Answers embeddings and images whole, after one step."""

    def __init__(self, task: Task) -> None:
        super().__init__(slots=4, task=task)
        self._task = task
        self.payloads: dict[str, bytes] = {}

    def submit(self, job_id: str, payload: bytes, sink: object, *, terms: object = None) -> None:
        self.book.add(job_id, sink)  # type: ignore[arg-type]  # a sink, as in the base class
        self.payloads[job_id] = payload
        self.live[job_id] = None  # type: ignore[assignment]  # only its key is looked at here
        self.work.set()

    def step(self) -> None:
        for job_id in tuple(self.live):
            del self.live[job_id]
            job_input = decode_input(self._task, self.payloads[job_id])
            if isinstance(job_input, EmbeddingInput):
                units = Units(input_tokens=sum(len(t.split()) for t in job_input.texts))
            else:
                assert isinstance(job_input, ImageInput)
                units = Units(images=1)
            self.book.deliver([Started(job_id, units), Produced(job_id, (), "", b"answer")])
            self.book.deliver([Completed(job_id, "complete", units)])


@asynccontextmanager
async def running(worker: FakeWorker) -> AsyncIterator[FakeWorker]:
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        yield worker
        nursery.cancel_scope.cancel()


async def test_generation_is_measured_alone_and_together(autojump_clock: MockClock) -> None:
    async with running(FakeWorker(slots=4)) as worker:
        found = await measure_speed(worker)
    assert found.decode_tps == pytest.approx(1 / STEP_S, rel=0.05)
    assert found.batched_tps == pytest.approx(4 / STEP_S, rel=0.2)
    assert found.prefill_tps > 1_000
    assert not worker.live


async def test_a_model_with_a_tiny_context_is_measured_too(autojump_clock: MockClock) -> None:
    worker = FakeWorker(slots=1)
    worker.info = EngineInfo(Task.CAUSAL_LM, 1, 8, "bf16")
    async with running(worker):
        assert (await measure_speed(worker)).decode_tps > 0


async def test_embeddings_are_measured_in_tokens_and_images_in_images(
    autojump_clock: MockClock,
) -> None:
    async with running(OneShotWorker(Task.EMBEDDING)) as worker:
        embedding = await measure_speed(worker)
    async with running(OneShotWorker(Task.IMAGE_CLASSIFICATION)) as worker:
        images = await measure_speed(worker)
    assert embedding.prefill_tps > 1_000
    assert images.prefill_tps == pytest.approx(1 / STEP_S, rel=0.05)
    assert images.batched_tps == pytest.approx(4 / STEP_S, rel=0.05)


async def test_a_model_that_fails_its_benchmark_says_why(autojump_clock: MockClock) -> None:
    class Failing(FakeWorker):
        def step(self) -> None:
            for job_id in tuple(self.live):
                del self.live[job_id]
                self.book.deliver([Failed(job_id, Code.INTERNAL, "weights are NaN", Units())])

    async with running(Failing()) as worker:
        with pytest.raises(BenchmarkError, match="weights are NaN"):
            await measure_speed(worker)


async def test_a_model_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    class Hanging(FakeWorker):
        def step(self) -> None: ...

    async with running(Hanging()) as worker:
        with pytest.raises(BenchmarkError, match="too slow"):
            await measure_speed(worker)


NOW_MS = 2_000_000_000_000
DAY_MS = 24 * 3_600 * 1_000


def speed(batched_tps: int) -> Speed:
    return Speed(prefill_tps=100, decode_tps=10, batched_tps=batched_tps)


def measured(batched_tps: int, *, days_ago: int = 0, others_share: float = 0.0) -> Measurement:
    return Measurement(speed(batched_tps), NOW_MS - days_ago * DAY_MS, others_share)


def test_speeds_are_kept_by_what_they_depend_on(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    key = speed_key(MODEL, HARDWARE, slots=4, threads=2, software="1")
    other = speed_key(MODEL, HARDWARE, slots=4, threads=2, software="2")
    SpeedCache(path).keep(key, measured(3))
    SpeedCache(path).keep(other, measured(6))
    assert SpeedCache(path).find(key, now_ms=NOW_MS) == speed(3)
    assert SpeedCache(path).find(other, now_ms=NOW_MS) == speed(6)
    assert SpeedCache(path).find("another", now_ms=NOW_MS) is None
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("kept", "best", "is_settled"),
    [
        ([measured(3, others_share=0.9)], 3, False),
        ([measured(3, others_share=0.9), measured(50)], 50, True),
        ([measured(50), measured(3)], 50, True),
        # A number that a busy machine gave is no better for being higher.
        ([measured(50), measured(60, others_share=0.5)], 50, True),
        ([measured(90, days_ago=40), measured(50)], 50, True),
        ([measured(90, days_ago=40)], 90, True),
        ([measured(90), *[measured(40)] * KEPT_MAX], 40, True),
    ],
)
def test_the_best_recent_measurement_of_a_quiet_machine_counts(
    tmp_path: Path, kept: list[Measurement], best: int, is_settled: bool
) -> None:
    cache = SpeedCache(tmp_path / "benchmarks.json")
    for measurement in kept:
        cache.keep("a", measurement)
    again = SpeedCache(tmp_path / "benchmarks.json")
    assert again.find("a", now_ms=NOW_MS) == speed(best)
    assert again.is_settled("a") == is_settled


def test_a_measurement_that_real_jobs_contradict_is_used_until_the_next_one() -> None:
    cache = SpeedCache(None)
    cache.keep("a", measured(90))
    cache.doubt("a")
    assert cache.find("a", now_ms=NOW_MS) == speed(90)
    assert not cache.is_settled("a")
    cache.keep("a", measured(40))
    assert cache.find("a", now_ms=NOW_MS) == speed(40)
    assert cache.is_settled("a")


async def test_a_measurement_notes_what_other_programs_took(autojump_clock: MockClock) -> None:
    taken = iter([100.0, 100.0 + 0.5])
    async with running(FakeWorker(slots=4)) as worker:
        began = trio.current_time()
        cache = SpeedCache(None, others_cpu_s=lambda: next(taken))
        made = await cache.measure("a", worker, now_ms=NOW_MS)
        took_s = trio.current_time() - began
    assert made.others_share == pytest.approx(min(0.5 / took_s, 1.0), abs=0.01)
    assert cache.find("a", now_ms=NOW_MS) is None, "the caller keeps it"


def test_what_an_older_version_measured_is_used_and_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    path.write_text('{"a": {"prefill_tps": 100, "decode_tps": 10, "batched_tps": 3}}')
    cache = SpeedCache(path)
    assert cache.find("a", now_ms=NOW_MS) == speed(3)
    assert not cache.is_settled("a")


@pytest.mark.parametrize(
    "damaged", [b"{", b"[]", b'{"a": 1}', b'{"a": {"x": 1}}', b'{"a": [{}]}', b"\xff"]
)
def test_a_damaged_file_is_measured_anew(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "benchmarks.json"
    path.write_bytes(damaged)
    cache = SpeedCache(path)
    assert cache.find("a", now_ms=NOW_MS) is None
    cache.keep("a", measured(3))
    assert SpeedCache(path).find("a", now_ms=NOW_MS) == speed(3)


def test_the_benchmarks_image_is_an_image() -> None:
    data = grey_png(64)
    assert data.startswith(b"\x89PNG")
    image = Image.open(io.BytesIO(data))
    assert (image.size, image.getpixel((5, 5))) == ((64, 64), (128, 128, 128))
