"""Puts a mutant into a process: its module is imported from changed source, no file is touched.

`install` has to run before the module is imported. Programs that the process starts are unchanged.
"""

import importlib.machinery
import sys
import types
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path

from sim.mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]


class StaleMutantError(Exception):
    """The code that a mutant changes has moved; the message says which text is to be looked for."""


def mutated(mutant: Mutant, source: str) -> str:
    """The source with the mutant in it. Raises StaleMutantError unless it fits in one place."""
    count = source.count(mutant.before)
    if count != 1:
        raise StaleMutantError(
            f"mutant {mutant.name!r}: {mutant.file} has the text {mutant.before!r} {count} times "
            "instead of once: adapt the mutant to the code"
        )
    return source.replace(mutant.before, mutant.after)


def read_mutated(mutant: Mutant) -> str:
    """The mutant's file as the mutant changes it. Raises StaleMutantError."""
    path = ROOT / mutant.file
    if not path.is_file():
        raise StaleMutantError(f"mutant {mutant.name!r}: there is no file {mutant.file}")
    return mutated(mutant, path.read_text())


class MutantFinder(MetaPathFinder):
    """Imports one module from changed source. `is_loaded` once something has imported it."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._code = compile(read_mutated(mutant), str(ROOT / mutant.file), "exec")
        self.is_loaded = False

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = _CodeLoader(fullname, str(ROOT / self._mutant.file), self._code)
            self.is_loaded = True
        return spec


class _CodeLoader(importlib.machinery.SourceFileLoader):
    """Runs code that was compiled already; no cached bytecode is read or written."""

    def __init__(self, fullname: str, path: str, code: types.CodeType) -> None:
        super().__init__(fullname, path)
        self._code = code

    def get_code(self, fullname: str) -> types.CodeType:
        return self._code


def install(mutant: Mutant) -> MutantFinder:
    """From now on this process imports the mutant. Raises StaleMutantError, or RuntimeError if the
    module was imported before."""
    if mutant.module in sys.modules:
        raise RuntimeError(f"{mutant.module} was imported before its mutant was installed")
    finder = MutantFinder(mutant)
    sys.meta_path.insert(0, finder)
    return finder
