"""What every program of ours has besides its commands: a version, and completion in shells."""

import importlib
import os

import pytest
from typer.testing import CliRunner

from protocol.programs.version import program_version

PROGRAMS = {
    "capanode": "capanode.cli",
    "coordinator": "coordinator.cli",
    "capacloud": "coordinator.cli.capacloud",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_tells_its_version(program: str) -> None:
    app = importlib.import_module(PROGRAMS[program]).app
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"{program} {program_version()}\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_shell_completes_a_programs_commands(program: str) -> None:
    app = importlib.import_module(PROGRAMS[program]).app
    asked = {
        f"_{program.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": f"{program} mod",
        "COMP_CWORD": "1",
        "PATH": os.environ["PATH"],
    }
    done = CliRunner().invoke(app, [], prog_name=program, env=asked)
    assert done.stdout.split() == ["models"]
