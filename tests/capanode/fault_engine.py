"""A small engine for tests of the worker: it echoes, and breaks in every way an engine can.

The prompt says what to do: `echo`, `forever`, or one of the faults below. Runs inside the sandbox.
"""

import ctypes
import os
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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
from protocol.errors import Code
from protocol.generation import GenerationInput
from protocol.messages import Task
from protocol.pricing import Units


class PanicException(BaseException):
    """Stands for what a Rust tokenizer raises."""


@dataclass
class _Job:
    job_id: str
    words: list[str]
    done: int = 0
    is_started: bool = False


def _talk() -> None:
    """Events of no job, past the worker's own loop, as from an engine that was taken over."""
    time.sleep(0.2)
    channel = int(os.environ["CAPANODE_CHANNEL_FD"])
    frame = struct.pack(">II", 3, 0) + b"\x92\x11\x90"  # [17, []]
    while True:
        os.write(channel, 500 * frame)


class FaultEngine:
    def __init__(self, model_dir: Path, slots: int) -> None:
        self.info = EngineInfo(Task.CAUSAL_LM, slots, 1_024, "none")
        self._model_dir = model_dir
        self._queue: list[_Job] = []
        self._hoard: list[bytearray] = []
        self.gate = threading.Event()

    @classmethod
    def load(cls, model_dir: Path, *, slots: int, threads: int, device: str) -> "FaultEngine":
        kind = (model_dir / "behaviour").read_text()
        if kind == "fails to load":
            raise ValueError("config.json makes no sense")
        if kind == "hangs while it loads":
            time.sleep(3_600)
        if kind == "exits while it loads":
            os._exit(3)
        if kind == "talks to itself":
            threading.Thread(target=_talk, daemon=True).start()
        return cls(model_dir, slots)

    @property
    def is_idle(self) -> bool:
        return not self._queue

    def slow_reading(self, job_input: EngineInput) -> Callable[[], EngineInput] | None:
        """What follows the word `slow` is read when the gate opens."""
        assert isinstance(job_input, GenerationInput)
        first, _, rest = (job_input.prompt or "").partition(" ")
        return partial(self._read, replace(job_input, prompt=rest)) if first == "slow" else None

    def _read(self, job_input: GenerationInput) -> GenerationInput:
        assert self.gate.wait(10)
        if job_input.prompt == "panic":
            raise PanicException("secret prompt")
        return job_input

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        assert isinstance(job_input, GenerationInput)
        assert job_input.prompt is not None
        if job_input.prompt == "too long":
            raise EngineRefusal("the prompt has 2000 tokens", code=Code.PROMPT_TOO_LONG)
        if job_input.prompt == "panic":
            raise PanicException("secret prompt")
        self._queue.append(_Job(job_id, job_input.prompt.split()))

    def cancel(self, job_id: str) -> None:
        self._queue = [job for job in self._queue if job.job_id != job_id]

    def step(self) -> Sequence[EngineEvent]:
        events: list[EngineEvent] = []
        for job in self._queue[: self.info.slots]:
            events += self._advance(job)
        ended = {e.job_id for e in events if isinstance(e, Completed | Failed)}
        self._queue = [job for job in self._queue if job.job_id not in ended]
        return events

    def _advance(self, job: _Job) -> list[EngineEvent]:
        fault = job.words[0]
        if not job.is_started:
            job.is_started = True
            return [Started(job.job_id, Units(input_tokens=len(job.words)))]
        if fault == "forever":
            time.sleep(0.001)
            return [Produced(job.job_id, (1,), "again ")]
        if fault == "flood":
            return [Produced(job.job_id, (1,), "again ")] * 500
        if fault == "hang":
            time.sleep(3_600)
        if fault == "crash":
            os._exit(9)
        if fault == "segfault":
            ctypes.string_at(0)
        if fault == "raise":
            raise ValueError("secret prompt")
        if fault == "bomb":
            self._hoard.append(bytearray(os.urandom(1)) * (16 << 20))
            return []
        if fault == "blob":
            return [
                Produced(job.job_id, (), "", bytes(2 << 20)),
                Completed(job.job_id, "complete", Units(input_tokens=1)),
            ]
        return self._echo(job)

    def _echo(self, job: _Job) -> list[EngineEvent]:
        units = Units(input_tokens=len(job.words), output_tokens=job.done)
        if job.done == len(job.words):
            return [Completed(job.job_id, "stop", units)]
        job.done += 1
        return [Produced(job.job_id, (job.done,), job.words[job.done - 1] + " ")]
