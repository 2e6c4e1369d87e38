"""Every listed mutant is killed by the test that it names: two at every run, all on demand.

`make contracts-proof` runs all. That they still fit the sources is checked at every run.
"""

import ast

import pytest

from contracts.build import ROOT
from tests.contracts.mutants import MUTANTS
from tests.contracts.mutants.mutant import Mutant
from tests.contracts.mutate import TESTS, is_killed, mutated
from tests.contracts.test_artifacts import sources

# They take seconds each: one weakens a check, the other moves a time.
SAMPLE = {"sum not checked", "claims close with the window"}


def test_there_are_enough_mutants_and_no_two_are_the_same() -> None:
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(m.part, m.before, m.after) for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_the_source_and_names_a_test(mutant: Mutant) -> None:
    source = (ROOT / "contracts" / "parts" / f"{mutant.part}.vy").read_text()
    assert mutated(source, mutant) != source
    file, name = mutant.killed_by.split(":")
    tree = ast.parse((TESTS / f"test_{file}.py").read_text())
    assert f"test_{name}" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_part_with_rules_has_mutants() -> None:
    parts = {path.stem for path in sources() if path.parent.name == "parts"}
    assert {mutant.part for mutant in MUTANTS} == parts


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SAMPLE))
def test_a_sample_of_the_mutants_is_killed(name: str) -> None:
    assert is_killed(next(mutant for mutant in MUTANTS if mutant.name == name))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "mutant", [m for m in MUTANTS if m.name not in SAMPLE], ids=lambda mutant: mutant.name
)
def test_every_other_mutant_is_killed(mutant: Mutant) -> None:
    assert is_killed(mutant)
