"""Keeps one worker running: starts it, starts it again after a pause when it ends, and gives up
when it ends too often. The node's jobs see one thing that is ready or is not.

Time is trio's and the jitter's randomness an argument, so that a test can replay a run. Must run
on a thread that lives as long as the node: see `capanode.sandbox.spawn`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from capanode.engines.base import EngineInfo
from capanode.errors import NodeError
from capanode.sandbox.errors import SandboxError
from capanode.sandbox.spawn import Sandbox
from capanode.worker.allowance import DEFAULT_TERMS, RunTerms
from capanode.worker.frames import JOB_ID_CHARS_MAX, Cancel, Start
from capanode.worker.jobs import EventSink, JobBook, WorkerState
from capanode.worker.process import Ending, WorkerProcess
from capanode.worker.spec import WorkerSpec
from protocol.errors import Code, RemoteProtocolError
from protocol.limits import PAYLOAD_BYTES_MAX


class WorkerStartError(NodeError):
    """The worker never became ready; the message is its last run's."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Pauses double from the first to the longest, each shortened by up to half at random so that
    the workers of one node do not start in step. A run that lasted long enough counts as a fresh
    start; after so many short runs in a row nobody tries again."""

    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    stable_after_s: float = 60.0
    short_runs_max: int = 5

    def pause_s(self, short_runs: int, rng: random.Random) -> float:
        whole_s = min(self.longest_pause_s, self.first_pause_s * 2.0 ** (short_runs - 1))
        return whole_s * rng.uniform(0.5, 1.0)


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
        self._process: WorkerProcess | None = None
        self._state = WorkerState.STARTING
        self._info: EngineInfo | None = None
        self._last_ending: Ending | None = None
        self._restart_at_s = 0.0
        self._log = structlog.get_logger().bind(engine=spec.engine.partition(":")[2])

    @property
    def state(self) -> WorkerState:
        return self._state

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def last_ending(self) -> Ending | None:
        """Why it last ended, for the operator; None if it never did."""
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
        if not self._process.has_room_for(len(payload)):
            raise RemoteProtocolError("the worker has too much input waiting", code=Code.BUSY)
        self._book.add(job_id, sink, terms)
        start = Start(job_id, payload, terms.log_id, terms.output_tokens_max, terms.seed)
        self._process.send_nowait(start)

    def cancel(self, job_id: str) -> None:
        """See `JobWorker.cancel`."""
        if self._book.remove(job_id) and self._process is not None:
            self._process.send_nowait(Cancel(job_id))

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
            self._set_state(WorkerState.READY)
            self._log.info("worker_ready", slots=info.slots, context_tokens=info.context_tokens)
            if is_first:
                task_status.started(info)

        short_runs = 0
        try:
            while True:
                started_at_s = trio.current_time()
                ending = await self._run_once(become_ready)
                lasted_s = trio.current_time() - started_at_s
                short_runs = 1 if lasted_s >= self._policy.stable_after_s else short_runs + 1
                if short_runs > self._policy.short_runs_max:
                    return self._give_up(ending)
                await self._pause(ending, self._policy.pause_s(short_runs, self._rng))
        finally:
            if self._state is not WorkerState.UNAVAILABLE:
                self._set_state(WorkerState.STOPPED)
            self._book.fail_all(Code.DRAINING, "the node is stopping")

    async def _run_once(self, become_ready: Callable[[EngineInfo], None]) -> Ending:
        self._set_state(WorkerState.STARTING)
        process = self._process = WorkerProcess(self._sandbox, self._spec, self._book)
        try:
            ending = await process.run(become_ready)
        except SandboxError as error:
            ending = Ending(Code.MODEL_UNAVAILABLE, str(error))
        finally:
            self._process = None
        self._last_ending = ending
        return ending

    async def _pause(self, ending: Ending, pause_s: float) -> None:
        self._log.warning(
            "worker_ended",
            code=ending.code,
            reason=ending.message,
            jobs=self._book.live_jobs,
            restart_in_s=round(pause_s, 3),
        )
        self._restart_at_s = trio.current_time() + pause_s
        self._set_state(WorkerState.RESTARTING)
        self._book.fail_all(ending.code, ending.message)
        await trio.sleep(pause_s)

    def _give_up(self, ending: Ending) -> None:
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
