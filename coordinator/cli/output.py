"""What commands print: tables and sentences for people, one JSON object for programs."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from protocol.money import format_credits


def complain(message: str) -> None:
    typer.echo(f"error: {message}", err=True)


def say(message: str) -> None:
    """Talk: not part of the data."""
    typer.echo(message, err=True)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns for people. Nothing is cut: a terminal that is too narrow wraps."""
    table = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(soft_wrap=False, width=None if Console().is_terminal else 200).print(table)


def print_facts(facts: dict[str, object]) -> None:
    """One fact a line, aligned."""
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {value}")


def credits_text(amount_nano: int) -> str:
    return f"{format_credits(amount_nano)} credits"


def time_text(stamp_ms: int | None) -> str:
    if stamp_ms is None:
        return "-"
    return datetime.fromtimestamp(stamp_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def short(name: str) -> str:
    """A peer id as people tell them apart: its end, since all begin alike."""
    return f"…{name[-8:]}" if len(name) > 12 else name
