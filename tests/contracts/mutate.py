"""Break the contract in each listed way and see that the tests notice.

python -m tests.contracts.mutate            every mutant, with the test that kills it
python -m tests.contracts.mutate ceiling    those with a word in their name
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vyper.exceptions import VyperException

from contracts.build import ROOT, build
from tests.contracts.evm import ARTIFACT_VARIABLE
from tests.contracts.mutants import MUTANTS, Mutant

# The unit tests first, since they are quick and name the reason; the machine sees what is left.
SUITES = (
    "test_channels test_books test_roots test_payouts test_signatures test_hostile_tokens",
    "test_settlement_machine",
)
SUITE_TIMEOUT_S = 120


def mutated_source(mutant: Mutant, folder: Path) -> None:
    """A copy of the contract with the mutant in it."""
    shutil.copytree(ROOT / "contracts", folder / "contracts", dirs_exist_ok=True)
    path = folder / "contracts" / "parts" / f"{mutant.part}.vy"
    text = path.read_text()
    if mutant.before not in one_line(text) and mutant.before not in text:
        raise ValueError(f"{mutant.name}: {mutant.part}.vy has no {mutant.before!r}")
    path.write_text(_replace(text, mutant))


def killer(mutant: Mutant) -> str | None:
    """The test that notices, or None if the mutant survives."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mutated_source(mutant, folder)
        artifact = folder / "Settlement.json"
        try:
            artifact.write_text(build("Settlement", root=folder))
        except VyperException as error:
            raise ValueError(f"{mutant.name} does not compile: {error}") from error
        for suite in SUITES:
            failed = _first_failure(suite, artifact)
            if failed is not None:
                return failed
    return None


def main(words: list[str]) -> int:
    survivors = 0
    for mutant in MUTANTS:
        if words and not any(word in mutant.name for word in words):
            continue
        test = killer(mutant)
        survivors += test is None
        line = f"| {mutant.name} | {mutant.part} | {test or '**survives**'} |\n"
        sys.stdout.write(line)
        sys.stdout.flush()
    return 1 if survivors else 0


def _first_failure(suite: str, artifact: Path) -> str | None:
    files = [f"tests/contracts/{name}.py" for name in suite.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    environment = {**os.environ, ARTIFACT_VARIABLE: str(artifact), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, *files, "-m", "not slow"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SUITE_TIMEOUT_S,
        check=False,
    )
    if result.returncode == 0:
        return None
    for line in result.stdout.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split("::")[1].split(" - ")[0]
    raise RuntimeError(f"pytest failed without a test:\n{result.stdout}\n{result.stderr}")


def _replace(text: str, mutant: Mutant) -> str:
    if mutant.before in text:
        return text.replace(mutant.before, mutant.after)
    # A statement that is wrapped in the source is one line here.
    flat = one_line(text)
    return flat.replace(mutant.before, mutant.after)


def one_line(text: str) -> str:
    """Statements joined across brackets, so that a mutant does not depend on line breaks."""
    out, depth, quoted = [], 0, False
    lines = text.splitlines(keepends=True)
    for line in lines:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
