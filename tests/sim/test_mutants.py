"""The mutants still fit the code, and two of them are really killed. `python -m sim mutants` runs
all of them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sim.mutants import MUTANTS, find_mutant
from sim.mutants.mutant import SEEDS_MAX, Mutant
from sim.mutants.patcher import ROOT, StaleMutantError, mutated, read_mutated
from sim.mutants.runner import ControlFailed, run_mutants

# Both are killed by tests of pure modules, which take a second.
SAMPLE = ("of two counts the node's is paid", "an expired hold can be captured")
MARKET_PACKAGES = {"protocol", "capanode", "coordinator"}


def test_there_are_enough_mutants_and_no_two_are_the_same() -> None:
    assert len(MUTANTS) >= 25
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(m.file, m.before, m.after) for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code_and_names_what_notices_it(mutant: Mutant) -> None:
    assert mutant.file.split("/")[0] in MARKET_PACKAGES, "the judges stay as they are"
    changed = read_mutated(mutant)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse((ROOT / mutant.file).read_text()))
    assert mutant.seeds or mutant.test
    assert 0 <= mutant.seeds <= SEEDS_MAX
    if mutant.test:
        path, _, name = mutant.test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        functions = ast.FunctionDef | ast.AsyncFunctionDef
        assert not name or name in {n.name for n in tree.body if isinstance(n, functions)}


def test_mutants_use_no_names_that_do_not_exist(tmp_path: Path) -> None:
    """A mutant that only raises NameError would be killed by anything."""
    for number, mutant in enumerate(MUTANTS):
        (tmp_path / f"mutant_{number}.py").write_text(read_mutated(mutant))
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821"]
    checked = subprocess.run([*ruff, str(tmp_path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_mutant_whose_code_has_moved_is_named() -> None:
    mutant = Mutant("lost", "protocol/money.py", "no such text", "another", seeds=1)
    with pytest.raises(StaleMutantError, match="0 times"):
        read_mutated(mutant)
    with pytest.raises(StaleMutantError, match="2 times"):
        mutated(mutant, "no such text, no such text")


@pytest.mark.slow
async def test_a_sample_of_the_mutants_is_killed() -> None:
    lines: list[str] = []
    verdicts = await run_mutants(tuple(map(find_mutant, SAMPLE)), lines.append, jobs=2)
    assert {verdict.name: verdict.killed for verdict in verdicts} == dict.fromkeys(SAMPLE, True)
    assert [verdict.by for verdict in verdicts] == [find_mutant(name).test for name in SAMPLE]
    assert any("control: passed" in line for line in lines)


@pytest.mark.slow
async def test_nothing_is_judged_by_a_check_that_the_unchanged_code_fails() -> None:
    mutant = Mutant("any", "protocol/money.py", "a", "b", test="tests/sim/no_such_test.py")
    with pytest.raises(ControlFailed):
        await run_mutants((mutant,), lambda line: None, jobs=1)
