"""One process of `sim mutants`: runs seeds or tests, with one mutant in its code or with none.

    python -m sim.mutants.child seeds MUTANT FIRST LAST
    python -m sim.mutants.child tests MUTANT TEST...

MUTANT is a name, or `-` for the unchanged code. Exit codes: 0 nothing was noticed, 10 it was
noticed (the last line of stdout says by what), 2 the run says nothing; stderr tells why.
"""

import io
import runpy
import sys

from sim.mutants import find_mutant
from sim.mutants.patcher import MutantFinder, StaleMutantError, install

# None of them is what an uncaught exception of this program itself ends with.
NOT_NOTICED, NOTICED, SAYS_NOTHING = 0, 10, 2
_PYTEST_FAILED = 1
UNCHANGED = "-"

# As `sim.world` writes it.
_VIOLATION = " world        violation "

# One process: workers would import the unchanged code. Warnings are errors as in all tests.
_PYTEST = ("pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist")
_OVERRIDES = ("-o", "addopts=--strict-markers -p no:boa_test")


def main(arguments: list[str]) -> int:
    kind, name, *rest = arguments
    finder = None
    if name != UNCHANGED:
        try:
            finder = install(find_mutant(name))
        except StaleMutantError as error:
            print(error, file=sys.stderr)
            return SAYS_NOTHING
    code = _run_seeds(*map(int, rest)) if kind == "seeds" else _run_tests(rest)
    return _checked(code, finder)


def _checked(code: int, finder: MutantFinder | None) -> int:
    if finder is not None and not finder.is_loaded:
        print("the mutant's module was never imported", file=sys.stderr)
        return SAYS_NOTHING
    if code not in (NOT_NOTICED, NOTICED):
        print(f"the run ended with {code}: it did not judge anything", file=sys.stderr)
        return SAYS_NOTHING
    return code


def _run_seeds(first: int, last: int) -> int:
    # Only now, because it imports what a mutant changes.
    from sim.world import run_world  # noqa: PLC0415

    for seed in range(first, last + 1):
        watch = _Watch()
        try:
            noticed = list(run_world(seed, sink=watch).violations)
        except BaseException as error:  # a world that falls apart, or is broken off, has noticed it
            if isinstance(error, KeyboardInterrupt):
                raise
            noticed = [watch.violation or repr(error)]
        if noticed:
            print(noticed[0].splitlines()[0])
            print(f"seed {seed}")
            return NOTICED
    return NOT_NOTICED


class _BrokenOffError(BaseException):
    """One violation is enough. Not an Exception, which a party's own handlers might catch."""


class _Watch(io.StringIO):
    """Reads a trace as it is written, and breaks the world off at the first violation."""

    violation = ""

    def write(self, line: str) -> int:
        if _VIOLATION in line:
            self.violation = line.strip()
            raise _BrokenOffError
        return len(line)


def _run_tests(tests: list[str]) -> int:
    sys.argv = [*_PYTEST, *_OVERRIDES, *tests]
    try:
        runpy.run_module("pytest", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return NOTICED if ended.code == _PYTEST_FAILED else int(ended.code or 0)
    return NOT_NOTICED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
