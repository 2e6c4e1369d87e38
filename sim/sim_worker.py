"""A worker without a process: answers that anyone can recompute, as fast as a calibrated machine.

It honours `capanode.worker.jobs.JobWorker` and batches as the real engines do: every step advances
all live jobs by one token, and takes longer the more there are. What ails a machine is in its
`Ailments`, which the world changes and which outlive the process.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import trio

from capanode.engines.base import Completed, EngineEvent, EngineInfo, Failed, Produced, Started
from capanode.worker.allowance import DEFAULT_TERMS, RunTerms, settle_input
from capanode.worker.jobs import EventSink, JobBook, WorkerExit, WorkerState
from protocol.codec import encode
from protocol.errors import Code, RemoteProtocolError
from protocol.generation import GenerationInput
from protocol.messages import Task
from protocol.payload import EmbeddingInput, EmbeddingOutput
from protocol.pricing import Units
from protocol.tasks import decode_input
from sim.options import SimMachine

CONTEXT_TOKENS = 512
QUANTIZATION = "bf16"
_EMBEDDING_DIMENSIONS = 8
# One answer in so many ends by itself before its limit.
_NATURAL_LENGTH_MAX = 160
_VOCABULARY = 50_000

SimInput = GenerationInput | EmbeddingInput


@dataclass(frozen=True, slots=True)
class PlannedAnswer:
    """The one right answer to an input, whichever node gives it."""

    input_tokens: int
    token_ids: tuple[int, ...]
    data: bytes
    reason: str

    @property
    def text(self) -> str:
        return "".join(map(text_of, self.token_ids))

    @property
    def units(self) -> Units:
        return Units(input_tokens=self.input_tokens, output_tokens=len(self.token_ids))


def answer_of(job_input: SimInput) -> PlannedAnswer:
    """What every fault-free run of this input delivers; depends on nothing but the input."""
    if isinstance(job_input, EmbeddingInput):
        return _embed(job_input)
    seed = f"{job_input.prompt} {job_input.seed}".encode()
    natural = 1 + int.from_bytes(hashlib.sha256(seed).digest()[:4]) % _NATURAL_LENGTH_MAX
    ends_itself = natural <= job_input.max_tokens and not job_input.ignore_eos
    length = natural if ends_itself else job_input.max_tokens
    stream = hashlib.shake_128(seed).digest(4 * length)
    token_ids = tuple(
        int.from_bytes(stream[at : at + 4]) % _VOCABULARY for at in range(0, 4 * length, 4)
    )
    reason = "stop" if ends_itself else "length"
    return PlannedAnswer(count_words(job_input.prompt or ""), token_ids, b"", reason)


def rest_of(job_input: SimInput) -> PlannedAnswer:
    """What is left of the answer, if the input has a part of it that was given elsewhere."""
    if isinstance(job_input, EmbeddingInput) or not job_input.prefix_tokens:
        return answer_of(job_input)
    given = len(job_input.prefix_tokens)
    begun = replace(job_input, max_tokens=job_input.max_tokens + given, prefix_tokens=())
    whole = answer_of(begun)
    left = whole.token_ids[given:]
    return replace(whole, input_tokens=whole.input_tokens + given, token_ids=left)


def text_of(token_id: int) -> str:
    return f"w{token_id} "


def count_words(text: str) -> int:
    """Words are this engine's tokens."""
    return len(text.split())


def _embed(job_input: EmbeddingInput) -> PlannedAnswer:
    vectors = tuple(
        hashlib.shake_128(text.encode()).digest(4 * _EMBEDDING_DIMENSIONS)
        for text in job_input.texts
    )
    data = encode(EmbeddingOutput(_EMBEDDING_DIMENSIONS, vectors))
    return PlannedAnswer(sum(map(count_words, job_input.texts)), (), data, "complete")


@dataclass(slots=True)
class Ailments:
    """What is wrong with a machine at this moment: everything takes so many times longer, or every
    job is refused. Numbers, because faults may overlap."""

    slowdown: float
    slowdowns: int = 0
    refusals: int = 0

    @property
    def pace(self) -> float:
        return self.slowdown**self.slowdowns


@dataclass(slots=True)
class _Live:
    """A job in the batch: its answer, and how much of it is out; None before its prefill."""

    answer: PlannedAnswer
    done: int | None = None


class SimWorker:
    """One model on one machine. `run` is its life; a crash interrupts it, as a supervisor would see
    a process end and start again."""

    def __init__(
        self,
        task: Task,
        machine: SimMachine,
        ailments: Ailments,
        *,
        on_state: Callable[[WorkerState], None],
    ) -> None:
        self._info = EngineInfo(task, machine.slots, CONTEXT_TOKENS, QUANTIZATION)
        self.state = WorkerState.STARTING
        self.last_ending: WorkerExit | None = None
        self.most_live = 0
        self._task = task
        self._machine = machine
        self._ailments = ailments
        self._on_state = on_state
        self._book = JobBook()
        self._live: dict[str, _Live] = {}
        self._work = trio.Event()
        self._restart_s = 0.0
        self._up = trio.CancelScope()

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def live_jobs(self) -> int:
        return len(self._live)

    def submit(
        self, job_id: str, payload: bytes, sink: EventSink, *, terms: RunTerms = DEFAULT_TERMS
    ) -> None:
        """See `JobWorker.submit`."""
        if self.state is not WorkerState.READY:
            raise RemoteProtocolError("the worker is not ready", code=Code.MODEL_UNAVAILABLE)
        if self._ailments.refusals:
            raise RemoteProtocolError("this worker takes nothing", code=Code.BUSY)
        # Without the seed of the request: checkers know a job's one right answer by its input.
        job_input = settle_input(
            decode_input(self._task, payload), output_tokens_max=terms.output_tokens_max
        )
        assert isinstance(job_input, GenerationInput | EmbeddingInput)
        self._book.add(job_id, sink, terms)
        self._live[job_id] = _Live(rest_of(job_input))
        self.most_live = max(self.most_live, len(self._live))
        self._work.set()

    def cancel(self, job_id: str) -> None:
        """See `JobWorker.cancel`."""
        self._live.pop(job_id, None)
        self._book.remove(job_id)

    def crash(self, *, restart_s: float) -> int:
        """The process ends, and is ready again after `restart_s`. Returns how many jobs it had."""
        lost = len(self._live)
        self._restart_s = restart_s
        self._up.cancel()
        return lost

    async def run(
        self, *, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Work until cancelled; `started` when it is ready for the first time."""
        self._set_state(WorkerState.READY)
        task_status.started(self._info)
        while True:
            with trio.CancelScope() as self._up:
                await self._step_forever()
            self._live.clear()
            self._set_state(WorkerState.RESTARTING)
            self._book.fail_all(Code.WORKER_CRASHED, "the simulated process ended")
            await trio.sleep(self._restart_s)
            self._set_state(WorkerState.READY)

    async def _step_forever(self) -> None:
        while True:
            while self._live:
                batch = tuple(self._live)
                await trio.sleep(self._step_s(batch))
                for job_id in batch:
                    # A client may have cancelled a job while the step was under way.
                    if job_id in self._live:
                        self._book.deliver(tuple(self.advance(job_id)))
            self._work = trio.Event()
            await self._work.wait()

    def _step_s(self, batch: tuple[str, ...]) -> float:
        machine = self._machine
        new = [self._live[job_id] for job_id in batch if self._live[job_id].done is None]
        prefill_s = sum(job.answer.input_tokens for job in new) / machine.prefill_tps
        decode_s = (1 + machine.batch_slowdown * (len(batch) - 1)) / machine.decode_tps
        return self._ailments.pace * (prefill_s + decode_s)

    def advance(self, job_id: str) -> Iterator[EngineEvent]:
        """What one step does for one job."""
        job = self._live[job_id]
        answer = job.answer
        if job.done is None:
            job.done = 0
            if answer.input_tokens > CONTEXT_TOKENS:
                del self._live[job_id]
                yield Failed(job_id, Code.PROMPT_TOO_LONG, "the context is too short", Units())
                return
            yield Started(job_id, Units(input_tokens=answer.input_tokens))
        if job.done < len(answer.token_ids):
            token_id = answer.token_ids[job.done]
            job.done += 1
            yield Produced(job_id, (token_id,), text_of(token_id))
        elif answer.data:
            yield Produced(job_id, (), "", answer.data)
        if job.done == len(answer.token_ids):
            del self._live[job_id]
            yield Completed(job_id, answer.reason, answer.units)

    def _set_state(self, state: WorkerState) -> None:
        self.state = state
        self._on_state(state)
