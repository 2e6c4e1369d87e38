"""docs/settlement.md says nothing that the tests do not bear out: names, and every mutant.

The gas table is compared by `test_gas.py`, which measures it.
"""

import re

from contracts.build import ROOT
from contracts.deploy import PUBLIC_TERMS, TRIAL_TERMS
from tests.contracts.mutants import MUTANTS
from tests.contracts.mutate import TESTS

LINES = (ROOT / "docs" / "settlement.md").read_text().splitlines()
DAY_S, HOUR_S, MINUTE_S = 86_400, 3_600, 60


def rows_below(header: str) -> list[str]:
    start = LINES.index(header) + 2
    end = next(i for i in range(start, len(LINES) + 1) if not "".join(LINES[i : i + 1]))
    return LINES[start:end]


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(test_\w+?)(?:\.py)?`", "\n".join(LINES)))
    sources = {path.stem: path.read_text() for path in TESTS.glob("test_*.py")}
    defined = {n for text in sources.values() for n in re.findall(r"def (test_\w+)\(", text)}
    assert len(named) >= 40
    assert not named - defined - sources.keys()


def test_every_mutant_is_listed_with_the_test_that_kills_it() -> None:
    expected = [f"| {m.name} | {m.part} | test_{m.killed_by.split(':')[1]} |" for m in MUTANTS]
    assert rows_below("| mutant | part | test that kills it |") == expected
    assert any(line.startswith(f"- {len(MUTANTS)} ways to break") for line in LINES)


def test_the_parameters_are_those_that_are_deployed() -> None:
    rows = [row.strip("| ").split(" | ") for row in rows_below("| name | public | trial | why |")]
    for cells in rows:
        name = cells[0].strip("`")
        for terms, cell in ((PUBLIC_TERMS, cells[1]), (TRIAL_TERMS, cells[2])):
            if name != "STAKE_COVER":
                assert getattr(terms, name) == in_units(cell), name


def in_units(cell: str) -> int:
    """`3 d` in seconds, `1,000` in units of a token with six decimals."""
    number, _, unit = cell.replace(",", "").partition(" ")
    return int(number) * {"d": DAY_S, "h": HOUR_S, "min": MINUTE_S, "": 10**6}[unit]
