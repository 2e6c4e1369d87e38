"""The mock as an engine of a node's worker. Needs no torch, and reads nothing of its model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capanode.engines.base import (
    Completed,
    EngineEvent,
    EngineInfo,
    EngineInput,
    EngineRefusal,
    Produced,
    Started,
)
from protocol.errors import Code
from protocol.generation import GenerationInput
from protocol.messages import Task
from protocol.pricing import Units
from sim.bench.mock.script import TOKEN_ID, WORD, beat_s, pace_s

CONTEXT_TOKENS = 262_144
_BYTES_PER_TOKEN = 4
# Between two looks at what the node says, while no token is due.
_NAP_S = 0.001


@dataclass(slots=True)
class _MockJob:
    input_tokens: int
    tokens_left: int
    pace_s: float
    due_at: float
    made: int = 0
    is_started: bool = False


class MockEngine:
    """An Engine: every step gives each job the token that is due."""

    def __init__(self, slots: int) -> None:
        self.info = EngineInfo(Task.CAUSAL_LM, slots, CONTEXT_TOKENS, "none")
        self._jobs: dict[str, _MockJob] = {}

    @classmethod
    def load(cls, model_dir: Path, *, slots: int, threads: int, device: str) -> "MockEngine":
        return cls(slots)

    @property
    def is_idle(self) -> bool:
        return not self._jobs

    def slow_reading(self, job_input: EngineInput) -> None:
        """Nothing is read here."""

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        if not isinstance(job_input, GenerationInput):
            raise EngineRefusal("the mock generates text", code=Code.INVALID_INPUT)
        texts = [message.content for message in job_input.messages]
        prompt = job_input.prompt or (texts[-1] if texts else "")
        size = sum(map(len, texts)) + len(job_input.prompt or "")
        beat, now = beat_s(prompt), time.monotonic()
        self._jobs[job_id] = _MockJob(
            input_tokens=1 + size // _BYTES_PER_TOKEN,
            tokens_left=job_input.max_tokens,
            pace_s=beat or pace_s(prompt),
            due_at=now - now % beat if beat else now,
        )

    def cancel(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    def step(self) -> Sequence[EngineEvent]:
        now = time.monotonic()
        events: list[EngineEvent] = []
        for job_id, job in list(self._jobs.items()):
            if job.due_at <= now:
                events += self._advance(job_id, job)
        if not events:
            time.sleep(_NAP_S)
        return events

    def _advance(self, job_id: str, job: _MockJob) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        if not job.is_started:
            job.is_started = True
            events.append(Started(job_id, Units(input_tokens=job.input_tokens)))
        job.due_at += job.pace_s
        job.tokens_left -= 1
        job.made += 1
        events.append(Produced(job_id, (TOKEN_ID,), WORD))
        if not job.tokens_left:
            del self._jobs[job_id]
            units = Units(input_tokens=job.input_tokens, output_tokens=job.made)
            events.append(Completed(job_id, "length", units))
        return events
