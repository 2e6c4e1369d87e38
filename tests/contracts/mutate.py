"""Build a contract with a mutant in it, and see whether a test notices.

The mutant is compiled apart, and pytest runs with the result in place of the committed artifact.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from contracts.build import ROOT, build
from tests.contracts.evm import ARTIFACT_VARIABLE
from tests.contracts.mutants.mutant import Mutant

TESTS = ROOT / "tests" / "contracts"
RUN_TIMEOUT_S = 120
# What pytest answers when tests ran, and some failed; a wrong name or a crash answers otherwise.
_TESTS_FAILED = 1


def is_killed(mutant: Mutant) -> bool:
    """Whether the test that the mutant names fails on it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "contracts", folder / "contracts")
        path = folder / "contracts" / "parts" / f"{mutant.part}.vy"
        path.write_text(mutated(path.read_text(), mutant))
        artifact = folder / "Settlement.json"
        artifact.write_text(_build_fast(folder))
        return _fails(test_id(mutant), artifact)


def test_id(mutant: Mutant) -> str:
    file, name = mutant.killed_by.split(":")
    return f"{TESTS.relative_to(ROOT)}/test_{file}.py::test_{name}"


def mutated(source: str, mutant: Mutant) -> str:
    """The source with the mutant in it. Raises ValueError if there is nothing to replace."""
    # A statement that is wrapped in the source is one line in most mutants.
    for text in (source, one_line(source)):
        if mutant.before in text:
            return text.replace(mutant.before, mutant.after)
    raise ValueError(f"{mutant.name}: {mutant.part}.vy has no {mutant.before!r}")


def one_line(text: str) -> str:
    """Statements joined across brackets, so that a mutant does not depend on line breaks."""
    out, depth, quoted = [], 0, False
    for line in text.splitlines(keepends=True):
        stripped = line.strip()
        if stripped.startswith('"""') or stripped.endswith('"""'):
            quoted ^= stripped.count('"""') == 1
        if quoted or stripped.startswith("#"):
            out.append(line)
            continue
        opened = depth
        depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
        body = line.rstrip("\n") if opened == 0 else line.strip()
        out.append(body + ("\n" if depth == 0 else ""))
    return "".join(out)


def _build_fast(folder: Path) -> str:
    """Without optimization: it takes half of the time, and makes more code than a chain takes."""
    main = folder / "contracts" / "Settlement.vy"
    text = main.read_text()
    assert "pragma optimize gas" in text
    main.write_text(text.replace("pragma optimize gas", "pragma optimize none"))
    return build("Settlement", root=folder, warnings="none")


def _fails(test: str, artifact: Path) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, test],
        cwd=ROOT,
        env={**os.environ, ARTIFACT_VARIABLE: str(artifact)},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    if result.returncode not in (0, _TESTS_FAILED):
        raise RuntimeError(f"{test} did not run:\n{result.stdout}\n{result.stderr}")
    return result.returncode == _TESTS_FAILED
