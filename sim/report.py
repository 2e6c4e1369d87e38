"""A world's result for people (a page of text) and for programs (one JSON object)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from protocol.money import format_credits
from sim.buyer import JobReport
from sim.world import WorldResult

# Half, nearly all, and the worst that is not a freak.
_PERCENTILES = (50, 90, 99)


def seed_line(seed: int) -> str:
    """All that is needed to see the same again."""
    return f"seed {seed}   (replay: python -m sim run --seed {seed} --trace FILE)"


def to_json(result: WorldResult) -> dict[str, object]:
    """Plain values; money in nano-credits, times in virtual milliseconds unless named otherwise."""
    return {
        "seed": result.seed,
        "ok": not result.violations,
        "violations": list(result.violations),
        "jobs": len(result.jobs),
        "outcomes": count_outcomes(result.jobs),
        "attempts": {str(n): count for n, count in _count_attempts(result.jobs).items()},
        "first_output_ms": _percentiles(_first_outputs_ms(result.jobs)),
        "total_ms": _percentiles(_totals_ms(result.jobs)),
        "probes_answered": len(result.probes),
        "leases": result.leases,
        "credited_nano": result.credited_nano,
        "captured_nano": result.captured_nano,
        "money_nano": result.money_nano,
        "faults": result.faults,
        "network": result.network,
        "events": result.events,
        "trace_lines": result.trace_lines,
        "trace_sha256": result.trace_sha256,
        "virtual_s": round(result.virtual_s, 3),
        "options": asdict(result.options),
    }


def render(result: WorldResult) -> Iterator[str]:
    """The lines of the page."""
    options = result.options
    yield (
        f"{options.nodes} nodes, {options.clients} clients, {len(result.jobs)} jobs in "
        f"{options.chaos_s:g} s of chaos; quiet after {result.virtual_s:.0f} s of virtual time"
    )
    yield from _section("jobs", count_outcomes(result.jobs))
    attempts = _count_attempts(result.jobs)
    yield from _section("nodes tried by a job", {str(n): count for n, count in attempts.items()})
    yield ""
    yield "latency, virtual ms       " + "".join(f"{f'p{p}':>9}" for p in _PERCENTILES)
    yield from _latency_rows(result.jobs)
    yield from _section("faults", result.faults)
    yield ""
    yield "money, credits"
    for name, nano in result.money_nano.items():
        yield f"  {name:<24}{format_credits(nano):>16}"
    yield f"  {'paid by clients':<24}{format_credits(result.captured_nano):>16}"
    yield ""
    yield f"trace: {result.trace_lines} lines, sha256 {result.trace_sha256}"
    yield from _verdict(result)


def count_outcomes(jobs: Sequence[JobReport]) -> dict[str, int]:
    """How jobs ended, most frequent first."""
    counts = Counter(_outcome(job) for job in jobs)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _outcome(job: JobReport) -> str:
    return job.end.value if job.code is None else f"{job.end.value}: {job.code.value}"


def _count_attempts(jobs: Sequence[JobReport]) -> dict[int, int]:
    """Of the jobs that got an answer or a part of one."""
    return dict(sorted(Counter(job.attempts for job in jobs if job.attempts).items()))


def _first_outputs_ms(jobs: Sequence[JobReport]) -> list[float]:
    return [job.first_output_ms for job in jobs if job.first_output_ms is not None]


def _totals_ms(jobs: Sequence[JobReport]) -> list[float]:
    return [job.total_ms for job in jobs if job.outcome is not None]


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """By nearest rank; empty if there is nothing to rank."""
    ranked = sorted(values)
    last = len(ranked) - 1
    return {f"p{p}": round(ranked[round(last * p / 100)], 3) for p in _PERCENTILES if ranked}


def _section(title: str, counts: dict[str, int]) -> Iterator[str]:
    yield ""
    yield title
    for name, count in counts.items():
        yield f"  {name:<32}{count:>8}"


def _latency_rows(jobs: Sequence[JobReport]) -> Iterator[str]:
    rows = {"first output": _first_outputs_ms(jobs), "whole answer": _totals_ms(jobs)}
    for name, values in rows.items():
        figures = _percentiles(values)
        yield f"  {name:<24}" + "".join(f"{figure:>9.0f}" for figure in figures.values())


def _verdict(result: WorldResult) -> Iterator[str]:
    if not result.violations:
        yield "every job ended, every hold is resolved, nothing is owed, and the books balance"
        return
    yield f"{len(result.violations)} violations:"
    for violation in result.violations:
        yield f"  {violation}"
