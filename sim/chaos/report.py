"""What a run came to: the figures, their targets, and how a person reads them."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from sim.chaos.books import BooksVerdict
from sim.chaos.load import AnswerEnd, Question
from sim.chaos.plan import Blow, PlannedBlow, Victim

ANSWERED_SHARE_MIN = 0.97
RESTART_TO_ANSWER_S_MAX = 4.0


@dataclass(frozen=True, slots=True)
class Restart:
    """The coordinator was killed, and started again. Times are trio's."""

    killed_at: float
    started_at: float


@dataclass(frozen=True, slots=True)
class ChaosResult:
    seed: int
    blows: Sequence[PlannedBlow]
    restarts: Sequence[Restart]
    questions: Sequence[Question]
    books: BooksVerdict
    # Programs that ended without having been killed, and bugs that they logged.
    mishaps: Sequence[str]


def restart_to_answer_s(result: ChaosResult) -> list[float]:
    """For each start of the coordinator, the time until the first whole answer to a try that began
    after the kill: it can only come from the new process."""
    found = []
    for restart in result.restarts:
        answers = [
            question.ended_at
            for question in result.questions
            if question.end is AnswerEnd.ANSWERED
            and question.tried_at >= restart.killed_at
            and question.ended_at >= restart.started_at
        ]
        if answers:
            found.append(min(answers) - restart.started_at)
    return found


def to_json(result: ChaosResult) -> dict[str, Any]:
    """The figures. `sql_findings` counts what `findings` tells, lost and doubled money included."""
    ends = Counter(question.end for question in result.questions)
    kinds = Counter((planned.blow, planned.target) for planned in result.blows)
    reasons = Counter(reason for question in result.questions for reason in question.reasons)
    waits_s = restart_to_answer_s(result)
    books = result.books
    asked = len(result.questions)
    return {
        "seed": result.seed,
        "coordinator_kills": kinds[Blow.KILL, Victim.COORDINATOR],
        "node_kills": kinds[Blow.KILL, Victim.NODE],
        "coordinator_freezes": kinds[Blow.FREEZE, Victim.COORDINATOR],
        "node_freezes": kinds[Blow.FREEZE, Victim.NODE],
        "questions": asked,
        "answered_share": ends[AnswerEnd.ANSWERED] / asked if asked else 0.0,
        "answered_at_once_share": _at_once(result.questions) / asked if asked else 0.0,
        "wrong_answers": ends[AnswerEnd.WRONG],
        "double_captures": books.double_captures,
        "acknowledged_lost": books.acknowledged_lost,
        "restart_to_answer_s_p50": statistics.median(waits_s) if waits_s else None,
        "restart_to_answer_s_max": max(waits_s) if waits_s else None,
        "sql_findings": len(books.findings),
        "findings": list(books.findings),
        "mishaps": list(result.mishaps),
        "billed_unanswered_share": (
            books.billed_unanswered_nano / books.billed_nano if books.billed_nano else 0.0
        ),
        "goodwill_nano": books.goodwill_nano,
        "asked_again": dict(reasons.most_common()),
    }


def faults(figures: dict[str, Any]) -> list[str]:
    """What must not be on any machine, however slow, in words."""
    checks = {
        f"answered_share is below {ANSWERED_SHARE_MIN:.0%}": (
            figures["answered_share"] < ANSWERED_SHARE_MIN
        ),
        "no answer came after a restart": figures["restart_to_answer_s_p50"] is None,
        "an answer was not the model's": figures["wrong_answers"] > 0,
        "money was captured twice": figures["double_captures"] > 0,
        "something acknowledged was lost": figures["acknowledged_lost"] > 0,
        "the books are wrong": figures["sql_findings"] > 0,
        "a program ended by itself or met a bug": bool(figures["mishaps"]),
    }
    return [words for words, is_fault in checks.items() if is_fault]


def misses(figures: dict[str, Any]) -> list[str]:
    """The targets that were missed: faults, and what took too long."""
    found = faults(figures)
    p50_s = figures["restart_to_answer_s_p50"]
    if p50_s is not None and p50_s > RESTART_TO_ANSWER_S_MAX:
        found.append(f"restart to answer took more than {RESTART_TO_ANSWER_S_MAX:g} s")
    return found


def _at_once(questions: Sequence[Question]) -> int:
    return sum(
        question.end is AnswerEnd.ANSWERED and not question.reasons for question in questions
    )


def print_report(figures: dict[str, Any], missed: Sequence[str]) -> None:
    """For a person."""
    plain = {name: value for name, value in figures.items() if not isinstance(value, list | dict)}
    width = max(map(len, plain))
    for name, value in plain.items():
        typer.echo(f"{name:<{width}}  {f'{value:.3f}' if isinstance(value, float) else value}")
    for reason, times in figures["asked_again"].items():
        typer.echo(f"asked again after {reason}: {times}")
    for text in (*figures["findings"], *figures["mishaps"]):
        typer.echo(f"found: {text}")
    for text in missed:
        typer.echo(f"missed: {text}")
