"""What a run came to: a slope for every program and figure, and what grows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from protocol.programs.output import print_table
from sim.soak.run import SoakResult
from sim.soak.samples import Sample
from sim.soak.slopes import Trend, trend_of

_MIB = 1024**2
# Fewer samples have no slope.
_SAMPLES_MIN = 5


@dataclass(frozen=True, slots=True)
class _Figure:
    """`at_least` is how much a figure must gain in one run to count as growing."""

    unit: str
    at_least: float


_FIGURES: Mapping[str, _Figure] = {
    # An allocator that finds a new size once is not a leak.
    "memory": _Figure("MiB", 2.0),
    "descriptors": _Figure("", 1.0),
    "threads": _Figure("", 1.0),
    "tasks": _Figure("", 1.0),
}


def trends(result: SoakResult) -> dict[str, dict[str, Trend]]:
    """By program, then by figure; a figure that was sampled too seldom is left out."""
    found: dict[str, dict[str, Trend]] = {}
    for name, samples in sorted(result.samples.items()):
        for figure, values in _series(samples):
            if len(values) >= _SAMPLES_MIN:
                times_s, numbers = zip(*values, strict=True)
                found.setdefault(name, {})[figure] = trend_of(times_s, numbers)
    return found


def growing(found: Mapping[str, Mapping[str, Trend]]) -> list[str]:
    """What grows, in words."""
    return [
        f"{name}: {figure} from {trend.first:.1f} to {trend.last:.1f}"
        for name, figures in found.items()
        for figure, trend in figures.items()
        if trend.is_growing(at_least=_FIGURES[figure].at_least)
    ]


def to_json(result: SoakResult) -> dict[str, Any]:
    found = trends(result)
    return {
        "minutes": result.lasts_s / 60,
        "questions": result.questions,
        "answered": result.answered,
        "growing": growing(found),
        "programs": {
            name: {
                figure: {
                    "first": round(trend.first, 2),
                    "last": round(trend.last, 2),
                    "per_hour": round(trend.per_hour, 2),
                    "noise": round(trend.noise, 2),
                }
                for figure, trend in figures.items()
            }
            for name, figures in found.items()
        },
    }


def print_report(figures: Mapping[str, Any]) -> None:
    rows = [
        (
            name,
            f"{figure}, {_FIGURES[figure].unit}".removesuffix(", "),
            f"{trend['first']:.1f}",
            f"{trend['last']:.1f}",
            f"{trend['per_hour']:+.1f}",
            f"{trend['noise']:.1f}",
        )
        for name, of_program in figures["programs"].items()
        for figure, trend in of_program.items()
    ]
    print_table(("program", "figure", "first", "last", "an hour", "noise"), rows)
    typer.echo(f"{figures['answered']} of {figures['questions']} questions answered")
    for words in figures["growing"] or ["nothing grows beyond its noise"]:
        typer.echo(words)


def _series(samples: Sequence[Sample]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    yield "memory", [(s.at_s, s.memory_bytes / _MIB) for s in samples]
    yield "descriptors", [(s.at_s, float(s.descriptors)) for s in samples]
    yield "threads", [(s.at_s, float(s.threads)) for s in samples]
    yield "tasks", [(s.at_s, float(s.tasks)) for s in samples if s.tasks is not None]
