"""Keeps one worker running: starts it, starts it again after a pause when it ends, and gives up
when it ends too often. The node's jobs see one thing that is ready or is not.

Time is trio's and the jitter's randomness an argument, so that a test can replay a run. Must run
on a thread that lives as long as the node: see `capanode.sandbox.spawn`.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from capanode.engines.base import Completed, EngineEvent, EngineInfo, Produced
from capanode.errors import NodeError
from capanode.sandbox.errors import SandboxError
from capanode.sandbox.spawn import Sandbox
from capanode.worker.allowance import DEFAULT_TERMS, RunTerms
from capanode.worker.commands import Cancel, Start
from capanode.worker.crashes import CrashJournal
from capanode.worker.frames import JOB_ID_CHARS_MAX
from capanode.worker.jobs import EventSink, JobBook, WorkerExit, WorkerState
from capanode.worker.process import WorkerProcess
from capanode.worker.runs import Run, Runs, is_end, is_told_again, suspects_of
from capanode.worker.spec import WorkerSpec
from protocol.errors import Code, RemoteProtocolError
from protocol.limits import PAYLOAD_BYTES_MAX

POISON_MESSAGE = "this input ended the model's process"

_ALIAS_SECRET_BYTES = 16

# Endings that an input can bring about.
_CRASHES = frozenset({Code.WORKER_CRASHED, Code.WORKER_HUNG, Code.OUT_OF_MEMORY})


class WorkerStartError(NodeError):
    """The worker never became ready; the message is its last run's."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Pauses double from the first to the longest, each shortened by up to half at random so that
    the workers of one node do not start in step. A run that lasted long enough counts as a fresh
    start; after so many short runs in a row the model is given up."""

    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    stable_after_s: float = 60.0
    short_runs_max: int = 5
    # A GPU that is gone comes back by its owner's hand, or never. Looking for it starts CUDA.
    device_pause_s: float = 30.0

    def pause_s(self, short_runs: int, rng: random.Random) -> float:
        whole_s = min(self.longest_pause_s, self.first_pause_s * 2.0 ** (short_runs - 1))
        return whole_s * rng.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What a worker's end means: `endings` for jobs that are over, and whether an input did it."""

    endings: tuple[tuple[Run, WorkerExit], ...]
    by_input: bool = False
    was_trial: bool = False


class WorkerSupervisor:
    """A `JobWorker` on a real, sandboxed process. `on_state` hears of every change."""

    def __init__(
        self,
        sandbox: Sandbox,
        spec: WorkerSpec,
        *,
        rng: random.Random,
        policy: RestartPolicy | None = None,
        on_state: Callable[[WorkerState], None] | None = None,
    ) -> None:
        self._sandbox = sandbox
        self._spec = spec
        self._rng = rng
        self._policy = policy or RestartPolicy()
        self._on_state = on_state or (lambda state: None)
        self._book = JobBook()
        self._runs = Runs()
        self._journal = CrashJournal()
        self._process: WorkerProcess | None = None
        self._state = WorkerState.STARTING
        self._info: EngineInfo | None = None
        self._last_ending: WorkerExit | None = None
        self._restart_at_s = 0.0
        self._alias_secret = rng.randbytes(_ALIAS_SECRET_BYTES)
        self._log = structlog.get_logger().bind(engine=spec.engine.partition(":")[2])

    @property
    def state(self) -> WorkerState:
        return self._state

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def last_ending(self) -> WorkerExit | None:
        return self._last_ending

    @property
    def live_jobs(self) -> int:
        return self._book.live_jobs

    def submit(
        self, job_id: str, payload: bytes, sink: EventSink, *, terms: RunTerms = DEFAULT_TERMS
    ) -> None:
        """See `JobWorker.submit`."""
        if self._state is not WorkerState.READY or self._process is None:
            raise RemoteProtocolError(
                f"the worker is {self._state}",
                code=Code.MODEL_UNAVAILABLE,
                retry_after_ms=self._retry_after_ms(),
            )
        if (
            len(payload) > PAYLOAD_BYTES_MAX
            or max(len(job_id), len(terms.log_id)) > JOB_ID_CHARS_MAX
        ):
            raise RemoteProtocolError("the input is too large", code=Code.INPUT_TOO_LARGE)
        self._check_past(payload, terms)
        if not self._process.has_room_for(len(payload)):
            raise RemoteProtocolError("the worker has too much input waiting", code=Code.BUSY)
        run = self._runs.add(job_id, payload, sink, terms)
        try:
            self._book.add(job_id, partial(self._hear, run), terms)
        except RemoteProtocolError:
            self._runs.remove(run)
            raise
        self._send_start(run, payload)

    def cancel(self, job_id: str) -> None:
        """See `JobWorker.cancel`."""
        run = self._runs.find(job_id)
        if run is None:
            return
        was_waiting, was_on_trial = run in self._runs.waiting, run is self._runs.on_trial
        self._runs.remove(run)
        if was_waiting:
            self._book.drop(job_id)
        elif self._book.remove(job_id) and self._process is not None:
            self._process.send_nowait(Cancel(job_id))
        if was_on_trial:
            self._go_on()

    def _check_past(self, payload: bytes, terms: RunTerms) -> None:
        """Raises RemoteProtocolError for what has ended the worker before."""
        if self._journal.has_met(payload):
            raise RemoteProtocolError(POISON_MESSAGE, code=Code.POISON_INPUT)
        if self._journal.is_barred(terms.client, trio.current_time()):
            raise RemoteProtocolError(
                "this client's inputs ended the model's process too often", code=Code.POISON_INPUT
            )

    def _send_start(self, run: Run, payload: bytes) -> None:
        assert self._process is not None
        terms = run.terms
        start = Start(
            run.job_id,
            payload,
            terms.log_id,
            terms.output_tokens_max,
            terms.seed,
            self._alias_of(terms.client),
        )
        self._process.send_nowait(start)

    def _alias_of(self, client: str) -> str:
        """What the worker calls a client: enough to keep clients apart, not to know them. The
        node's own jobs have none."""
        if not client:
            return ""
        return hashlib.sha256(self._alias_secret + client.encode()).hexdigest()

    def _hear(self, run: Run, event: EngineEvent) -> None:
        """Pass an event on to the job's owner, but not what a second run repeats."""
        if run.has_answered and isinstance(event, Produced):
            run.sink(event)  # Nearly every event: nothing is to be decided after the first piece.
            return
        if is_end(event):
            was_on_trial = run is self._runs.on_trial
            self._runs.remove(run)
            if isinstance(event, Completed):
                self._journal.job_ended_well()
            run.sink(event)
        else:
            if not is_told_again(run, event):
                run.sink(event)
            was_on_trial = isinstance(event, Produced) and run is self._runs.on_trial
            if isinstance(event, Produced):
                self._runs.release_payload(run)
        if was_on_trial:
            self._go_on()

    def _go_on(self) -> None:
        """Give the next suspect its trial; take new jobs once there is none."""
        if self._process is None:
            return
        run = self._runs.next_trial()
        if run is None:
            self._set_state(WorkerState.READY)
            return
        assert run.payload is not None
        self._book.rerun(run.job_id, run.terms)
        self._send_start(run, run.payload)

    async def run(
        self, *, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the worker running until cancelled or given up; then return.

        Reports `started` with the engine's description once it is ready. Raises WorkerStartError
        if it never becomes ready.
        """

        def become_ready(info: EngineInfo) -> None:
            is_first = self._info is None
            self._info = info
            self._go_on()
            self._log.info("worker_ready", slots=info.slots, context_tokens=info.context_tokens)
            if is_first:
                task_status.started(info)

        short_runs = 0
        try:
            while True:
                started_at_s = trio.current_time()
                ending = await self._run_once(become_ready)
                lasted_s = trio.current_time() - started_at_s
                verdict = self._judge(ending)
                if ending.device is not None:
                    if self._info is None:
                        return self._give_up(ending)
                    await self._wait_for_device(ending, verdict)
                    continue
                if verdict.by_input:
                    # Nor was the crash that put the input on trial the model's fault.
                    short_runs = max(1, short_runs - verdict.was_trial)
                else:
                    is_stable = lasted_s >= self._policy.stable_after_s
                    short_runs = 1 if is_stable else short_runs + 1
                if short_runs > self._policy.short_runs_max:
                    return self._give_up(ending)
                await self._pause(ending, verdict, self._policy.pause_s(short_runs, self._rng))
        finally:
            if self._state is not WorkerState.UNAVAILABLE:
                self._set_state(WorkerState.STOPPED)
            self._book.fail_all(Code.DRAINING, "the node is stopping")

    async def _run_once(self, become_ready: Callable[[EngineInfo], None]) -> WorkerExit:
        # Offered again when it is ready, not each time that its GPU is looked for.
        if self._state is not WorkerState.DEVICE_LOST:
            self._set_state(WorkerState.STARTING)
        process = self._process = WorkerProcess(self._sandbox, self._spec, self._book)
        try:
            ending = await process.run(become_ready)
        except SandboxError as error:
            ending = WorkerExit(Code.MODEL_UNAVAILABLE, str(error))
        finally:
            self._process = None
        self._last_ending = ending
        return ending

    def _judge(self, ending: WorkerExit) -> "_Verdict":
        """Decide how each job of a worker that ended has ended, and which are tried again."""
        self._book.forget_cancelled()
        runs, on_trial = self._runs.in_worker, self._runs.on_trial
        is_by_crash = ending.code in _CRASHES
        if is_by_crash and len(runs) == 1 and not runs[0].has_answered:
            (run,) = runs
            if self._journal.convict(run.culprit, trio.current_time()):
                self._runs.put_on_trial(())
                poisoned = WorkerExit(Code.POISON_INPUT, POISON_MESSAGE)
                return _Verdict(((run, poisoned),), by_input=True, was_trial=run is on_trial)
        suspects = suspects_of(runs) if is_by_crash and len(runs) > 1 else ()
        self._runs.put_on_trial(suspects)
        for run in suspects:
            self._book.park(run.job_id)
        return _Verdict(tuple((run, ending) for run in runs if run not in suspects))

    async def _pause(self, ending: WorkerExit, verdict: "_Verdict", pause_s: float) -> None:
        self._log.warning(
            "worker_ended",
            code=ending.code,
            reason=ending.message,
            by_input=verdict.by_input,
            jobs=len(verdict.endings),
            on_trial=len(self._runs.waiting),
            restart_in_s=round(pause_s, 3),
        )
        self._restart_at_s = trio.current_time() + pause_s
        self._set_state(WorkerState.RESTARTING)
        for run, told in verdict.endings:
            self._book.fail(run.job_id, told.code, told.message)
        await trio.sleep(pause_s)

    async def _wait_for_device(self, ending: WorkerExit, verdict: "_Verdict") -> None:
        """Its offer is withdrawn by the state; once the GPU works again, the worker is ready."""
        if self._state is not WorkerState.DEVICE_LOST:
            self._log.error("worker_lost_its_gpu", reason=ending.message)
        self._set_state(WorkerState.DEVICE_LOST)
        for run, told in verdict.endings:
            self._book.fail(run.job_id, told.code, told.message)
        await trio.sleep(self._policy.device_pause_s * self._rng.uniform(0.5, 1.0))

    def _give_up(self, ending: WorkerExit) -> None:
        self._log.error("worker_given_up", code=ending.code, reason=ending.message)
        self._set_state(WorkerState.UNAVAILABLE)
        self._book.fail_all(ending.code, ending.message)
        if self._info is None:
            raise WorkerStartError(
                f"the worker for {self._spec.model_dir.name} does not start: {ending.message}"
            )

    def _set_state(self, state: WorkerState) -> None:
        if state is not self._state:
            self._state = state
            self._on_state(state)

    def _retry_after_ms(self) -> int | None:
        if self._state is not WorkerState.RESTARTING:
            return None
        return max(0, round(1_000 * (self._restart_at_s - trio.current_time())))
