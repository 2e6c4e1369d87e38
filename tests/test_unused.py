"""What only tests use is shown by the program to its operator, or it is removed."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The contract's twin and its books are models that tests play against: they are not held to this.
PROGRAMS = ("protocol", "capanode", "coordinator")
# Called by a library, or by the test that compares docs/operating.md with the settings.
ALLOWED = {"accept_stream", "settings_table"}
WORD = re.compile(r"\w+")


def sources(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from (ROOT / package).rglob("*.py")


def words(*packages: str) -> Counter[str]:
    return Counter(word for path in sources(*packages) for word in WORD.findall(path.read_text()))


def definitions(*packages: str) -> Iterator[str]:
    """Functions, methods and classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for path in sources(*packages):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds) and not node.name.startswith("__"):
                yield node.name


def test_no_function_or_class_is_there_for_tests_alone() -> None:
    """By the words in the source: a name that is only ever defined is used nowhere."""
    defined, said, tested = Counter(definitions(*PROGRAMS)), words(*PROGRAMS, "sim"), words("tests")
    defined += Counter(name for name in definitions("sim") if name in defined)
    unused = {name for name, count in defined.items() if said[name] <= count and tested[name]}
    assert unused == ALLOWED
