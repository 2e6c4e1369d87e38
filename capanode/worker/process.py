"""One run of a worker process, from its start to its end, as the node sees it.

Reads what it sends, sends what it should do, and ends it when it is silent, too large, or says
what no worker of ours says. What comes after the end is the supervisor's.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from functools import partial

import structlog
import trio

from capanode.device_problems import DeviceFailure
from capanode.engines.base import EngineInfo
from capanode.sandbox.limits import open_resident, prefer_as_victim, resident_bytes_of_all
from capanode.sandbox.opening import SandboxOpening
from capanode.sandbox.spawn import Sandbox, SandboxedProcess
from capanode.worker.commands import Command, Ping, Shutdown, encode_command
from capanode.worker.frames import FrameBuffer, WorkerProtocolError
from capanode.worker.jobs import JobBook, WorkerExit
from capanode.worker.outgoing import Outgoing
from capanode.worker.reports import Cancelled, LoadFailed, Pong, Report, parse_report
from capanode.worker.spec import EXIT_OUT_OF_MEMORY, WorkerSpec
from capanode.worker.stderr_log import LogLine, StderrLog
from protocol.errors import Code
from protocol.limits import KIB, MIB
from protocol.pace import Pace
from protocol.token_buckets import Rate

_RECEIVE_BYTES = 256 * 1024
_STDERR_BYTES = 16 * 1024

# What a worker may make the node do, in µs of its time: half a core for one that talks without end.
# The largest engines on the fastest cards yield half as many tokens as that allows. An event of a
# job that was cancelled is dropped at once, so a backlog of them does not hold up other jobs.
_COST = Rate(per_s=500_000.0, burst=100_000)
_READ_COST = 50
_DELIVERED_COST = 25
_DROPPED_COST = 4
# A worker prints a few lines at its start and one for a job that failed. A read of one byte costs
# as much as one of a line.
_STDERR = Rate(per_s=64.0 * KIB, burst=256 * KIB)
_STDERR_BYTES_PER_READ = 256
_LAST_READS_MAX = 8

# How often a worker with jobs is looked at, and asked if it was silent since the last look.
HEARTBEAT_S = 1.0
# Memory can grow by gigabytes a second; reading a worker's size takes 20 µs.
MEMORY_POLL_S = 0.05
# Of one that has processes of its own, each thread of which is asked for its children.
PROCESSES_POLL_S = 0.5
# A worker that was told to stop has nothing to save.
SHUTDOWN_GRACE_S = 1.0
# From the end of its stream to the end of the process, and the other way round.
EXIT_GRACE_S = 1.0


class WorkerProcess:
    """Make one, `run` it, forget it."""

    def __init__(self, sandbox: Sandbox, spec: WorkerSpec, book: JobBook) -> None:
        self._sandbox = sandbox
        self._spec = spec
        self._book = book
        self._log = structlog.get_logger().bind(engine=spec.engine.partition(":")[2])
        self._stderr = StderrLog()
        self._heard_at_s = 0.0
        self._ping = 0
        self._ping_sent_at_s: float | None = None
        # A worker obeys in order: it has confirmed these before it answers the ping.
        self._cancelled_at_ping = 0
        self._is_ready = False
        self._exited = trio.Event()
        self._ending: WorkerExit | None = None

    async def run(self, on_ready: Callable[[EngineInfo], None]) -> WorkerExit:
        """Start the process and look after it until it ends. Cancelling ends it cleanly.

        Raises SandboxError if it cannot even be started.
        """
        process = self._process = self._sandbox.spawn(self._spec.program())
        self._on_ready = on_ready
        self._channel = process.channel
        self._channel.setblocking(False)
        self._outgoing = Outgoing(self._channel)
        os.set_blocking(process.stderr_fd, False)
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                for task in (
                    self._receive,
                    self._outgoing.run,
                    self._read_stderr,
                    self._watch_exit,
                    self._watch_load,
                    self._watch_heartbeat,
                    self._watch_memory,
                ):
                    nursery.start_soon(task)
            assert self._ending is not None
            return self._ending
        finally:
            with trio.CancelScope(shield=True):
                await self._stop(process)

    def has_room_for(self, payload_bytes: int) -> bool:
        return self._outgoing.has_room_for(payload_bytes)

    def send_nowait(self, command: Command) -> None:
        """Hand a command to the worker without waiting."""
        self._outgoing.send_nowait(encode_command(command))

    def _end(self, code: Code, message: str, device: DeviceFailure | None = None) -> None:
        """The first reason counts."""
        if self._ending is None:
            self._ending = WorkerExit(code, message, device)
            self._scope.cancel()

    async def _receive(self) -> None:
        buffer = FrameBuffer()
        pace = Pace(_COST)
        while True:
            await trio.lowlevel.wait_readable(self._channel)
            try:
                data = self._channel.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                break
            self._heard_at_s = trio.current_time()
            cost = _READ_COST
            try:
                for header, blob in buffer.feed(data):
                    cost += self._handle(parse_report(header, blob))
            except WorkerProtocolError as error:
                self._end(Code.WORKER_CRASHED, f"the worker misbehaved: {error}")
            if pause_s := pace.pause_s(cost, self._heard_at_s):
                await trio.sleep(pause_s)
        with trio.move_on_after(EXIT_GRACE_S):
            await self._exited.wait()
        self._end(*_explain_exit(self._process.popen.poll(), is_ready=self._is_ready))

    def _handle(self, report: Report) -> int:
        """Act on a report; returns what that cost."""
        if isinstance(report, list):
            delivered = self._book.deliver(report)
            dropped = len(report) - delivered
            return delivered * _DELIVERED_COST + dropped * _DROPPED_COST
        if isinstance(report, Pong):
            if report.number != self._ping:
                raise WorkerProtocolError("an answer to a ping that was not sent")
            if self._book.confirmed < self._cancelled_at_ping:
                raise WorkerProtocolError("the worker answered a ping before an earlier cancel")
            self._ping_sent_at_s = None
        elif isinstance(report, Cancelled):
            self._book.confirm_removal(report.job_id)
        elif isinstance(report, LoadFailed):
            self._end(Code.MODEL_UNAVAILABLE, f"the model did not load: {report.message}")
        elif isinstance(report, DeviceFailure):
            self._end(Code.MODEL_UNAVAILABLE, f"the worker has no GPU: {report}", report)
        else:
            if self._is_ready:
                raise WorkerProtocolError("the worker became ready twice")
            self._is_ready = self._stderr.may_hold_content = True
            self._on_ready(report)
        return _DELIVERED_COST

    async def _watch_exit(self) -> None:
        pidfd = os.pidfd_open(self._process.popen.pid)
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        self._exited.set()
        # The end of its stream tells the reader, after its last words. Should something else hold
        # the stream open, this does.
        await trio.sleep(EXIT_GRACE_S)
        self._end(*_explain_exit(self._process.popen.poll(), is_ready=self._is_ready))

    async def _watch_load(self) -> None:
        await trio.sleep(self._spec.load_timeout_s)
        if not self._is_ready:
            limit = f"{self._spec.load_timeout_s:g} s"
            self._end(Code.MODEL_UNAVAILABLE, f"the model did not load within {limit}")

    async def _watch_heartbeat(self) -> None:
        """Ask a worker with jobs that was silent since the last look; it answers between steps."""
        interval_s = min(HEARTBEAT_S, self._spec.hang_after_s / 4)
        while True:
            looked_at_s = trio.current_time()
            await trio.sleep(interval_s)
            if not self._is_ready or self._book.is_empty:
                continue
            now_s = trio.current_time()
            if self._ping_sent_at_s is None:
                if self._heard_at_s < looked_at_s:
                    self._ping += 1
                    self._ping_sent_at_s = now_s
                    self._cancelled_at_ping = self._book.cancelled
                    self.send_nowait(Ping(self._ping))
            elif now_s - self._ping_sent_at_s > self._spec.hang_after_s:
                limit = f"{self._spec.hang_after_s:g} s"
                self._end(Code.WORKER_HUNG, f"the worker did not answer for {limit}")

    async def _watch_memory(self) -> None:
        limit = self._spec.limits.memory_bytes
        is_one = self._spec.opening is SandboxOpening.CLOSED
        with contextlib.ExitStack() as stack:
            read: Callable[[], int] | None = None
            while True:
                await trio.sleep(MEMORY_POLL_S if is_one else PROCESSES_POLL_S)
                pid = self._process.find_program_pid()
                if read is None and pid is not None:
                    prefer_as_victim(pid)
                    if is_one:
                        read = stack.enter_context(open_resident(pid))
                    else:
                        read = partial(resident_bytes_of_all, pid)
                elif read is not None and read() > limit:
                    what = f"the worker used more than {limit // MIB} MiB of memory"
                    self._end(Code.OUT_OF_MEMORY, what)

    async def _read_stderr(self) -> None:
        pace = Pace(_STDERR)
        while True:
            await trio.lowlevel.wait_readable(self._process.stderr_fd)
            read = self._log_stderr()
            if not read:
                break
            if pause_s := pace.pause_s(max(read, _STDERR_BYTES_PER_READ), trio.current_time()):
                await trio.sleep(pause_s)

    def _log_stderr(self) -> int:
        """Log a piece of what the worker printed; how many bytes, 0 if there is no more for now."""
        try:
            data = os.read(self._process.stderr_fd, _STDERR_BYTES)
        except BlockingIOError:
            return 0
        self._log_lines(self._stderr.feed(data, trio.current_time()))
        return len(data)

    def _log_lines(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            getattr(self._log, line.level)(line.event, **line.fields)

    async def _stop(self, process: SandboxedProcess) -> None:
        """End the process, whatever happened before, and release what it held."""
        if self._ending is None:
            self._outgoing.send_some(memoryview(encode_command(Shutdown())))
            with trio.move_on_after(SHUTDOWN_GRACE_S):
                await self._wait_gone(process)
        process.kill()
        # A process with gigabytes to give back takes a while to go.
        await self._wait_gone(process)
        process.popen.wait()
        for _ in range(_LAST_READS_MAX):
            if not self._log_stderr():
                break
        self._log_lines(self._stderr.finish())
        process.close()

    async def _wait_gone(self, process: SandboxedProcess) -> None:
        if process.popen.poll() is None:
            pidfd = os.pidfd_open(process.popen.pid)
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)


def _explain_exit(status: int | None, *, is_ready: bool) -> tuple[Code, str]:
    """What an exit status says. bwrap reports a signal as 128 + its number."""
    when = "unexpectedly" if is_ready else "while it loaded"
    if status == EXIT_OUT_OF_MEMORY:
        return Code.OUT_OF_MEMORY, "the worker ran out of memory"
    if status is None:
        return Code.WORKER_CRASHED, f"the worker closed its channel {when}"
    number = -status if status < 0 else status - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(number).name
            return Code.WORKER_CRASHED, f"the worker was killed by {name} {when}"
    return Code.WORKER_CRASHED, f"the worker ended with status {status} {when}"
