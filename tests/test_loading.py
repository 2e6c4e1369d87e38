"""What our programs load: a command answers at once, and none holds a library that it never uses.

What a library loads besides is its own affair; pydantic, for one, is typer's.
"""

import json
import subprocess
import sys

import pytest

from capanode.tasks import NODE_TASKS

OURS = {"capanode", "contracts", "coordinator", "sim"}
MODELS = {"gguf", "matplotlib", "PIL", "safetensors", "tokenizers", "torch", "transformers"}
WEB = {"jinja2", "starlette", "uvicorn", "uvloop"}
CHAIN = {"boa", "eth_abi", "rlp", "vyper"}
# Each costs more than all the rest of `--help`, or is of a library that does.
HEAVY = MODELS | WEB | {"alembic", "cryptography", "httpx", "libp2p", "numpy", "sqlalchemy"}
HEAVY |= {"structlog", "trio"}
OF_A_WORKER = {"capanode", "jinja2", "numpy", "PIL", "safetensors", "tokenizers", "torch"}

HELP = """
import sys
from {program} import main
sys.argv = ["{program}", "--help"]
try:
    main()
except SystemExit:
    pass
"""
ENGINES = sorted({spec.engine.partition(":")[0] for spec in NODE_TASKS.values()})


def loaded_by(program: str) -> set[str]:
    """The top-level packages that a process has after this text."""
    told = (
        "\nimport json, sys\nprint(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + told], capture_output=True, check=True, text=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "program", ["capanode.cli", "contracts.cli", "coordinator.cli", "coordinator.cli.capacloud"]
)
def test_help_loads_nothing_heavy(program: str) -> None:
    """Commands import what they need when they are called: pyproject.toml lets them."""
    own = program.partition(".")[0]
    assert not loaded_by(HELP.format(program=program)) & (HEAVY | CHAIN | OURS - {own})


PROGRAMS = {
    "client": (
        "coordinator.cli.capacloud, coordinator.cli.market_session, protocol.net.libp2p",
        MODELS | WEB | CHAIN | {"alembic", "capanode", "numpy", "sim", "sqlalchemy"},
    ),
    "gateway beside its users": (
        "coordinator.edge.serve",
        MODELS | CHAIN | {"alembic", "capanode", "jinja2", "sim", "sqlalchemy", "typer"},
    ),
    "coordinator": ("coordinator.serve", MODELS | CHAIN | {"capanode", "sim", "typer"}),
    "node": (
        "capanode.serve, protocol.net.libp2p",
        MODELS | CHAIN | WEB | {"alembic", "contracts", "coordinator", "numpy", "sim", "typer"},
    ),
    # It runs in the sandbox: what it does not load cannot be turned against it.
    "worker": (
        ", ".join(["capanode.worker.main", *ENGINES]),
        (HEAVY | CHAIN | OURS | {"pydantic", "typer"}) - OF_A_WORKER,
    ),
    "converter": ("capanode.models.convert", HEAVY | CHAIN | OURS - {"capanode"} | {"typer"}),
    "sandbox": (
        "capanode.sandbox.launch",
        HEAVY | CHAIN | OURS - {"capanode"} | {"protocol", "typer"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_loads_nothing_that_it_never_uses(program: str) -> None:
    modules, foreign = PROGRAMS[program]
    assert not loaded_by(f"import {modules}") & foreign
