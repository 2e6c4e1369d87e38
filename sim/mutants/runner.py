"""Runs every mutant in processes of its own, after the unchanged code has passed the same checks.

Without that control the result would be worth nothing: a test that fails anyway kills everything.
"""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import trio

from protocol.errors import CapaError
from sim.mutants.child import NOT_NOTICED, NOTICED, UNCHANGED
from sim.mutants.mutant import Mutant

# A seed takes 8 s of one quiet core, and a test at most as much; a busy machine gets much longer.
SEED_WITHIN_S = 120.0
TESTS_WITHIN_S = 120.0
CONTROL_TESTS_WITHIN_S = 600.0
_STDERR_LINES = 12

Tell = Callable[[str], None]


class ControlFailed(CapaError):
    """The unchanged code fails a check that mutants are judged by."""


class NoVerdict(CapaError):
    """A run ended without judging anything."""


@dataclass(frozen=True, slots=True)
class MutantVerdict:
    """`by` is `seed N` or a test's id; if it was not killed, what was tried or went wrong."""

    name: str
    killed: bool
    by: str
    took_s: float


def default_jobs() -> int:
    """One process for each core."""
    return os.cpu_count() or 1


async def run_mutants(
    mutants: Sequence[Mutant], tell: Tell, *, jobs: int
) -> tuple[MutantVerdict, ...]:
    """Judge them, at most `jobs` at a time; `tell` gets a line for each. Raises ControlFailed."""
    limiter = trio.CapacityLimiter(jobs)
    await _control(mutants, tell, limiter)
    verdicts: dict[str, MutantVerdict] = {}

    async def judge(mutant: Mutant) -> None:
        async with limiter:
            started_at = time.monotonic()
            killed, by = await _judge(mutant)
        took_s = time.monotonic() - started_at
        verdicts[mutant.name] = MutantVerdict(mutant.name, killed, by, took_s)
        word = "killed  " if killed else "SURVIVED"
        tell(f"{len(verdicts):>3}/{len(mutants)}  {word}  {mutant.name}: {by} ({took_s:.0f} s)")

    async with trio.open_nursery() as nursery:
        for mutant in mutants:
            nursery.start_soon(judge, mutant)
    return tuple(verdicts[mutant.name] for mutant in mutants)


async def _control(mutants: Sequence[Mutant], tell: Tell, limiter: trio.CapacityLimiter) -> None:
    """The unchanged code breaks no invariant in any seed, and passes every test, that is used."""
    seeds = max((mutant.seeds for mutant in mutants), default=0)
    tests = sorted({mutant.test for mutant in mutants if mutant.test})
    tell(f"control: {seeds} seeds and {len(tests)} tests without a mutant")
    started_at = time.monotonic()

    failures: list[str] = []

    async def check(run: "_Run") -> None:
        async with limiter:
            try:
                noticed = await _run(run)
            except NoVerdict as error:
                noticed = str(error)
        if noticed is not None:
            failures.append(noticed)

    async with trio.open_nursery() as nursery:
        if tests:
            nursery.start_soon(check, _Run("tests", UNCHANGED, tests, CONTROL_TESTS_WITHIN_S))
        for first, last in _shares(seeds, limiter.total_tokens):
            nursery.start_soon(check, _seeds(UNCHANGED, first, last))
    if failures:
        raise ControlFailed("without any mutant, this fails already:\n" + "\n".join(failures))
    tell(f"control: passed ({time.monotonic() - started_at:.0f} s)")


def _shares(seeds: int, jobs: float) -> Iterator[tuple[int, int]]:
    """The seeds from 1 on in ranges of about equal size, one for each job."""
    size = max(1, math.ceil(seeds / jobs))
    for first in range(1, seeds + 1, size):
        yield first, min(first + size - 1, seeds)


async def _judge(mutant: Mutant) -> tuple[bool, str]:
    """Whether it was killed, and by what."""
    tried = []
    for run in _runs_of(mutant):
        try:
            noticed = await _run(run)
        except NoVerdict as error:
            return False, str(error)
        if noticed is not None:
            return True, noticed
        tried.append(run.what)
    return False, f"not noticed by {' or '.join(tried)}"


@dataclass(frozen=True, slots=True)
class _Run:
    """One process of `sim.mutants.child`."""

    kind: str
    name: str
    arguments: list[str]
    within_s: float

    @property
    def what(self) -> str:
        return f"{self.kind} {' to '.join(self.arguments)}"


def _seeds(name: str, first: int, last: int) -> _Run:
    within_s = (last - first + 1) * SEED_WITHIN_S
    return _Run("seeds", name, [str(first), str(last)], within_s)


def _runs_of(mutant: Mutant) -> Iterator[_Run]:
    if mutant.seeds:
        yield _seeds(mutant.name, 1, mutant.seeds)
    if mutant.test:
        yield _Run("tests", mutant.name, [mutant.test], TESTS_WITHIN_S)


async def _run(run: _Run) -> str | None:
    """By what the code was found to be wrong, or None. Raises NoVerdict."""
    command = [sys.executable, "-m", "sim.mutants.child", run.kind, run.name, *run.arguments]
    ended: subprocess.CompletedProcess[bytes] | None = None
    with trio.move_on_after(run.within_s):
        ended = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
    if ended is None:
        raise NoVerdict(f"{run.what} took longer than {run.within_s:g} s")
    if ended.returncode == NOTICED:
        if run.kind == "tests" and run.name != UNCHANGED:
            return run.arguments[0]
        return _tail(ended.stdout, 1 if run.name != UNCHANGED else _STDERR_LINES)
    if ended.returncode != NOT_NOTICED:
        raise NoVerdict(f"{run.what} judged nothing:\n{_tail(ended.stderr or ended.stdout)}")
    return None


def _tail(output: bytes, lines: int = _STDERR_LINES) -> str:
    return "\n".join(output.decode(errors="replace").strip().splitlines()[-lines:])
