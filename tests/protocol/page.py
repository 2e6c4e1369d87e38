"""Reads docs/protocol.md as data: its tables, and its test vectors."""

import re
from functools import cache
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"

Row = tuple[str, ...]

_VECTOR = re.compile(r" {4}(\S+(?: \S+)*) {2,}(\S+)")
_CONTINUATION = re.compile(r" {8,}(\S+)")


@cache
def page_text() -> str:
    return PAGE.read_text()


def rows_under(*header: str) -> list[Row]:
    """The rows of all tables with exactly these columns, without backticks."""
    rows: list[Row] = []
    is_inside = False
    for line in page_text().splitlines():
        if not line.startswith("|"):
            is_inside = False
        elif cells_of(line) == header:
            is_inside = True
        elif is_inside and not line.startswith("|---"):
            rows.append(cells_of(line))
    assert rows, f"the page has no table with the columns {header}"
    return rows


def cells_of(line: str) -> Row:
    return tuple(cell.strip().replace("`", "") for cell in line.strip("|").split("|"))


def words_of(cell: str) -> list[str]:
    """A cell that lists words; an empty one lists none."""
    return cell.split(", ") if cell else []


def constants_of(*places: object) -> dict[str, set[float]]:
    """The numbers in capitals that modules or classes define, by name."""
    found: dict[str, set[float]] = {}
    for place in places:
        for name, value in vars(place).items():
            if name.isupper() and type(value) in (int, float):
                found.setdefault(name, set()).add(value)
    return found


def number_of(cell: str) -> tuple[float, str]:
    """`256 KiB` as 262144 and `bytes`, `2.5 s` as 2.5 and `s`, `1,000` as 1000 and nothing."""
    amount, _, unit = cell.partition(" ")
    factor = {"KiB": 1024, "MiB": 1024**2}.get(unit, 1)
    plain = amount.replace(",", "")
    number = float(plain) if "." in plain else int(plain)
    return number * factor, "bytes" if factor > 1 else unit


@cache
def vectors() -> dict[str, str]:
    """The indented lines after the heading of the test vectors, by name; long values are joined."""
    found: dict[str, str] = {}
    name = ""
    _, _, section = page_text().partition("Test vectors\n")
    for line in section.splitlines():
        if first := _VECTOR.fullmatch(line):
            name = first[1]
            assert name not in found, f"{name} is there twice"
            found[name] = first[2]
        elif more := _CONTINUATION.fullmatch(line):
            found[name] += more[1]
    return found
