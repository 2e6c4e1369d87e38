"""What commands print: tables and sentences for people, one JSON object for programs."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from textwrap import wrap
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from protocol.money import format_credits
from protocol.pricing import UNIT_NAMES, PriceSheet, asked_prices
from protocol.text import ANSWER_MARKS, printable

# A sentence of ours may have lines. Whatever else moves a cursor is shown, not done.
LINES = "\n"

# Where there is no terminal to fit into, a row is one line: `grep` and `awk` read lines.
_WIDTH_WITHOUT_TERMINAL = 10_000


def complain(message: str) -> None:
    typer.echo(f"error: {printable(message, keep=LINES)}", err=True)


def say(message: str) -> None:
    """Talk: not part of the data."""
    typer.echo(printable(message, keep=LINES), err=True)


def write_answer(text: str) -> None:
    """A piece of an answer, at once. A file gets it as it is; a terminal must not obey it."""
    is_terminal = sys.stdout.isatty()
    sys.stdout.write(printable(text, keep=ANSWER_MARKS) if is_terminal else text)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns for people. Nothing is cut: in a terminal that is too narrow for them, each row is a
    block of lines."""
    console = Console()
    if console.is_terminal and _columns_width(headings, rows) > console.width:
        _print_blocks(headings, rows, console.width)
        return
    columns = [Column(heading, overflow="fold") for heading in headings]
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(printable(str(cell), keep=LINES) for cell in row))
    width = None if console.is_terminal else _WIDTH_WITHOUT_TERMINAL
    # Names come from strangers: without markup, brackets in them are only brackets.
    Console(width=width, markup=False, highlight=False).print(table)


def _columns_width(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
    """Of the table as it is drawn: three characters between columns."""
    cells = [list(map(len, headings)), *([len(str(cell)) for cell in row] for row in rows)]
    widths: list[int] = [max(column) for column in zip(*cells, strict=True)]
    return sum(widths) + 3 * (len(headings) - 1)


def _print_blocks(headings: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> None:
    """One fact a line, and what is longer than a line under itself."""
    indent = max(map(len, headings)) + 2
    for number, row in enumerate(rows):
        if number:
            typer.echo()
        for heading, cell in zip(headings, row, strict=True):
            lines = wrap(printable(str(cell), keep=LINES), max(width - indent, 10)) or [""]
            typer.echo(f"{heading:<{indent}}" + f"\n{'':<{indent}}".join(lines))


def print_facts(facts: Mapping[str, object]) -> None:
    """One fact a line, aligned."""
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {printable(str(value), keep=LINES)}")


def credits_text(amount_nano: int) -> str:
    return f"{format_credits(amount_nano)} credits"


def price_text(price: PriceSheet, units: Collection[str] = UNIT_NAMES) -> str:
    """The positions that are not free, in credits, of jobs that are metered in these units."""
    asked = [
        f"{format_credits(nano)} {position.label}"
        for position, nano in asked_prices(price)
        if position.unit is None or position.base_unit in units
    ]
    return ", ".join(asked) or "free"


def bytes_text(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def time_text(stamp_ms: int | None) -> str:
    """UTC, to the second."""
    if stamp_ms is None:
        return "-"
    return datetime.fromtimestamp(stamp_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def health_word(health: str) -> str:
    """A node's health in a market. A breaker's own words say the opposite of what people take them
    for."""
    return _HEALTH_WORDS.get(health, health)


_HEALTH_WORDS = {"closed": "healthy", "half_open": "on trial", "open": "excluded"}


def short(name: str) -> str:
    """A peer id as people tell them apart: its end, since all begin alike."""
    return f"…{name[-8:]}" if len(name) > 12 else name
