"""The worker: runs one engine inside the sandbox and does what the node says.

`serve` is on the path of every token: it looks for commands without blocking, lets the engine take
one step for all jobs, and sends all that happened in one frame. Whatever a job's input does to a
parser, including a panic in native code, is that job's failure; whatever a step raises ends the
process, because the state of the engine is unknown then.
"""

import gc
import importlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, cast

from capanode.device_problems import DeviceFailure
from capanode.engines.base import Engine, EngineEvent, EngineRefusal, Failed
from capanode.sandbox.inside import Surroundings, read_surroundings
from capanode.sandbox.last_lock import close_sandbox
from capanode.sandbox.limits import apply_limits
from capanode.sandbox.opening import SandboxOpening
from capanode.worker.allowance import settle_input
from capanode.worker.commands import Cancel, Command, Ping, Start, parse_command
from capanode.worker.device import CPU, device_failure_of
from capanode.worker.frames import FrameBuffer
from capanode.worker.reports import (
    encode_cancelled,
    encode_device_failed,
    encode_events,
    encode_load_failed,
    encode_pong,
    encode_ready,
)
from capanode.worker.slow_inputs import Read, SlowInputs
from capanode.worker.spec import (
    EXIT_LOAD_FAILED,
    EXIT_NO_DEVICE,
    EXIT_OUT_OF_MEMORY,
    EXIT_STEP_FAILED,
    EngineOptions,
    parse_engine_options,
)
from capanode.worker.stream_windows import StreamWindows
from protocol.errors import Code, RemoteProtocolError
from protocol.pricing import Units
from protocol.tasks import decode_input
from protocol.tensors import TensorInput

_RECEIVE_BYTES = 256 * 1024
_FRAMES_LOGGED_MAX = 8


class NodeSocket:
    """The worker's end of the socket. Sends block: a node that does not read stops the engine,
    which is the back-pressure that it wants."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._buffer = FrameBuffer()

    def receive(self, *, wait: bool) -> Sequence[Command]:
        """The commands that have arrived. Raises EOFError when the node is gone."""
        try:
            data = self._channel.recv(_RECEIVE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return ()
        if not data:
            raise EOFError
        return [parse_command(header, blob) for header, blob in self._buffer.feed(data)]

    def wait_beside(self, slow: SlowInputs) -> None:
        """Until there is a command, or one of `slow` is ready."""
        slow.wait(self._channel)

    def send(self, frame: bytes) -> None:
        self._channel.sendall(frame)

    def send_events(self, events: Sequence[EngineEvent]) -> None:
        for frame in encode_events(events):
            self._channel.sendall(frame)


def serve(channel: NodeSocket, engine: Engine, windows: StreamWindows) -> None:
    """Run jobs until the node says stop or is gone."""
    slow = SlowInputs()
    while True:
        events: list[EngineEvent] = []
        is_waiting = engine.is_idle and not slow.is_idle
        if is_waiting:
            channel.wait_beside(slow)
        for command in channel.receive(wait=engine.is_idle and not is_waiting):
            if isinstance(command, Start):
                begin = partial(_begin, engine, windows, slow, command)
                events += _take_in(windows, command, begin)
            elif isinstance(command, Cancel):
                slow.cancel(command.job_id)
                engine.cancel(command.job_id)
                windows.leave(command.job_id)
                # After what is told of the job already, before anything of a successor.
                channel.send_events(events)
                events = []
                channel.send(encode_cancelled(command.job_id))
            elif isinstance(command, Ping):
                channel.send(encode_pong(command.number))
            else:
                return
        for start, read in slow.take():
            events += _take_in(windows, start, partial(_submit, engine, start, read))
        if not engine.is_idle:
            made = engine.step()
            windows.note_events(made)
            events += made
        channel.send_events(events)


def _begin(engine: Engine, windows: StreamWindows, slow: SlowInputs, command: Start) -> None:
    """Read a job's input, or leave that to the thread beside."""
    job_input = decode_input(engine.info.task, command.payload)
    if isinstance(job_input, TensorInput):
        job_input = windows.enter(command.job_id, command.client, job_input)
    settled = settle_input(
        job_input,
        output_tokens_max=command.output_tokens_max,
        seed=command.seed,
        client=command.client,
    )
    read = engine.slow_reading(settled)
    if read is None:
        engine.submit(command.job_id, settled)
    else:
        slow.start(command, read)


def _submit(engine: Engine, command: Start, read: Read) -> None:
    engine.submit(command.job_id, read.result())


def _take_in(
    windows: StreamWindows, command: Start, attempt: Callable[[], None]
) -> tuple[Failed, ...]:
    """The boundary of a job's input."""
    try:
        attempt()
    except (EngineRefusal, RemoteProtocolError) as refusal:
        windows.leave(command.job_id)
        log("job_input_refused", job_id=command.log_id, code=refusal.code)
        return (Failed(command.job_id, refusal.code, str(refusal), Units()),)
    except (KeyboardInterrupt, SystemExit):
        raise
    # Parsers in native code raise what no list of exceptions foresees: a panic in the tokenizer is
    # a BaseException. This boundary is per job, like the node's per-stream one.
    except BaseException as error:
        windows.leave(command.job_id)
        code = Code.OUT_OF_MEMORY if _is_out_of_memory(error) else Code.INVALID_INPUT
        log("job_input_failed", job_id=command.log_id, code=code, **_describe(error))
        return (Failed(command.job_id, code, "the input could not be read", Units()),)
    return ()


def load_engine(options: EngineOptions, surroundings: Surroundings) -> Engine:
    module_name, _, class_name = options.engine.partition(":")
    engine_class: Any = getattr(importlib.import_module(module_name), class_name)
    return cast(
        Engine,
        engine_class.load(
            surroundings.model_dir,
            slots=options.slots,
            threads=options.threads,
            device=options.device,
        ),
    )


def log(event: str, **fields: object) -> None:
    """One JSON line to the node, which logs it again. Never a job's content: exceptions are named
    by type and place, because their messages may quote a prompt."""
    sys.stderr.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stderr.flush()


def _describe(error: BaseException) -> dict[str, object]:
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_LOGGED_MAX:]
    places = [f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in frames]
    return {"error": type(error).__name__, "places": " < ".join(reversed(places))}


def _is_out_of_memory(error: BaseException) -> bool:
    """torch says so in different ways: a RuntimeError on the CPU, a class of its own on a GPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _log_uncaught(
    _kind: type[BaseException], error: BaseException, _trace: TracebackType | None
) -> None:
    log("worker_failed", level="error", **_describe(error))


def _take_gpu(channel: NodeSocket, options: EngineOptions) -> None:
    """Before the model is read: an engine would run into the same with fewer words."""
    # It loads torch, which not every engine needs.
    from capanode.engines.cuda_device import open_cuda  # noqa: PLC0415

    failure = open_cuda(options.allocated_bytes)
    if failure is not None:
        _end_without_device(channel, failure)


def _end_without_device(channel: NodeSocket, failure: DeviceFailure) -> NoReturn:
    """The reason is the driver's own and quotes no input."""
    log("device_failed", level="error", problem=failure.problem, reason=failure.reason)
    channel.send(encode_device_failed(failure))
    # Not by way of CUDA's own clean-up, which may hang on a card that is gone.
    os._exit(EXIT_NO_DEVICE)


def main() -> None:
    surroundings = read_surroundings()
    apply_limits(surroundings.limits)
    sys.excepthook = _log_uncaught
    options = parse_engine_options(sys.argv[1])
    channel = NodeSocket(surroundings.open_channel())
    if options.device != CPU:
        _take_gpu(channel, options)
    try:
        engine = load_engine(options, surroundings)
        if surroundings.opening is not SandboxOpening.CLOSED:
            close_sandbox(surroundings.opening, gpu=options.device != CPU)
    # The boundary of loading: whatever a model's files do to the libraries that read them, the
    # node is told in words. No prompt has been seen yet, so the message may be told too.
    except Exception as error:
        failure = device_failure_of(error)
        if failure is not None:
            _end_without_device(channel, failure)
        log("model_load_failed", level="error", **_describe(error))
        channel.send(encode_load_failed(f"{type(error).__name__}: {error}"))
        sys.exit(EXIT_LOAD_FAILED)
    # The libraries' millions of objects never die: keep the collector from visiting them.
    gc.collect()
    gc.freeze()
    info = engine.info
    windows = StreamWindows.of_engine(info, time.monotonic)
    channel.send(encode_ready(replace(info, features=(*info.features, *windows.features))))
    try:
        serve(channel, engine, windows)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        log("node_gone")
    # The boundary of a step: no engine is trusted after one that failed, so the process ends, and
    # its exit code tells the node whether memory was the reason.
    except Exception as error:
        failure = device_failure_of(error)
        if failure is not None:
            _end_without_device(channel, failure)
        log("step_failed", level="error", **_describe(error))
        os._exit(EXIT_OUT_OF_MEMORY if _is_out_of_memory(error) else EXIT_STEP_FAILED)
    # Nothing is left to save, and native libraries may hang in their own clean-up.
    os._exit(0)


if __name__ == "__main__":
    main()
