"""The runs of one worker's jobs across its crashes: which were in it, and which get a trial.

When a worker ends with several jobs in it, those that had answered something are told so, and the
others, one of which may have ended it, are run again one at a time. Synchronous: no I/O.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from capanode.engines.base import Completed, EngineEvent, Failed, Started
from capanode.worker.allowance import RunTerms
from capanode.worker.crashes import Culprit, InputDigest, digest_of
from capanode.worker.jobs import EventSink
from protocol.limits import MIB

# Inputs that are kept until their job answers, so that it can be tried again.
KEPT_BYTES_MAX = 64 * MIB
# A trial may cost a restart; more suspects than these are told that the worker ended.
TRIALS_MAX = 8


@dataclass(slots=True, eq=False)
class Run:
    """One job, from its submission to its end, over several processes if need be."""

    job_id: str
    terms: RunTerms
    sink: EventSink
    # None once the job has answered, or if there was no room to keep it: then there is its digest.
    payload: bytes | None
    digest: InputDigest | None = None
    has_started: bool = False
    has_answered: bool = False

    @property
    def culprit(self) -> Culprit:
        """Of a job that has not answered. Only crashes pay for the digest of a long input."""
        assert not self.has_answered, "a job that has answered is not to blame"
        digest = digest_of(self.payload) if self.payload is not None else self.digest
        assert digest is not None, "an input that is not kept has its digest kept"
        return Culprit(self.terms.client, digest)


class Runs:
    """All live runs. `waiting` are those that wait for their trial; `on_trial` is the one that has
    it; the others are in the worker together."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._kept_bytes = 0
        self.waiting: deque[Run] = deque()
        self.on_trial: Run | None = None

    def add(self, job_id: str, payload: bytes, sink: EventSink, terms: RunTerms) -> Run:
        is_kept = self._kept_bytes + len(payload) <= KEPT_BYTES_MAX
        self._kept_bytes += len(payload) if is_kept else 0
        run = Run(job_id, terms, sink, payload if is_kept else None)
        if not is_kept:
            run.digest = digest_of(payload)
        self._runs[job_id] = run
        return run

    def find(self, job_id: str) -> Run | None:
        return self._runs.get(job_id)

    def release_payload(self, run: Run) -> None:
        """The job has answered: it is not run again."""
        run.has_answered = True
        if run.payload is not None:
            self._kept_bytes -= len(run.payload)
            run.payload = None

    def remove(self, run: Run) -> None:
        self.release_payload(run)
        if self._runs.get(run.job_id) is run:
            del self._runs[run.job_id]
        if run in self.waiting:
            self.waiting.remove(run)
        if run is self.on_trial:
            self.on_trial = None

    @property
    def in_worker(self) -> tuple[Run, ...]:
        """Those that the process has."""
        return tuple(run for run in self._runs.values() if run not in self.waiting)

    def put_on_trial(self, runs: Iterable[Run]) -> None:
        """Let these wait for their trials, before those that wait already."""
        self.waiting.extendleft(reversed(tuple(runs)))
        self.on_trial = None

    def next_trial(self) -> Run | None:
        self.on_trial = self.waiting.popleft() if self.waiting else None
        return self.on_trial


def suspects_of(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Those that may have ended the worker and can be run again as if nothing had happened: a job
    that has answered did its prefill, where inputs do their harm."""
    return tuple(run for run in runs if run.payload is not None)[:TRIALS_MAX]


def is_told_again(run: Run, event: EngineEvent) -> bool:
    """True for what a second run repeats and the job's owner has heard."""
    if not isinstance(event, Started):
        return False
    has_started, run.has_started = run.has_started, True
    return has_started


def is_end(event: EngineEvent) -> bool:
    return isinstance(event, Completed | Failed)
