"""`capanode setup`: what a node needs, with the build of torch that this machine can run."""

import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from capanode.cli.options import Json
from capanode.errors import SetupError
from protocol.programs.output import print_json, say
from protocol.programs.version import program_version

if TYPE_CHECKING:
    from capanode.torch_build import TorchChoice

TORCH = "torch>=2.9,<3"
STDERR = 2


def setup(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be installed, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Install torch, in the build for this machine's driver, and the other parts of a node."""
    from capanode.torch_build import choose_build, find_cards

    choice = choose_build(find_cards())
    commands = _commands(choice)
    if as_json:
        print_json(
            {
                "build": choice.build.name,
                "reason": choice.reason,
                "download_gb": choice.build.download_gb,
                "commands": commands,
            }
        )
    else:
        say(f"torch {choice.build.name}: {choice.reason}")
        say(f"about {choice.build.download_gb:g} GB to download, by")
        for command in commands:
            say("  " + " ".join(command))
    if dry_run:
        return
    if not yes and not typer.confirm("Install it now?", default=True, err=True):
        raise typer.Abort
    for command in commands:
        _run(command)
    say("installed: `capanode init` and `capanode doctor` are next")


def _commands(choice: "TorchChoice") -> list[list[str]]:
    """Torch comes first: what is installed already, the second command leaves as it is."""
    pip = [sys.executable, "-m", "pip", "install"]
    node = f"capacloud[node]=={program_version()}"
    return [[*pip, "--index-url", choice.build.index, TORCH], [*pip, node]]


def _run(command: list[str]) -> None:
    """Raises SetupError; pip has told why by then."""
    if importlib.util.find_spec("pip") is None:
        raise SetupError(
            f"{sys.executable} has no pip: run the commands of `capanode setup --dry-run` with the "
            "installer of this environment, such as `uv pip`"
        )
    # pip's own progress goes to stderr: stdout is for data.
    done = subprocess.run(command, stdout=STDERR, check=False)  # noqa: S603  # built above
    if done.returncode:
        raise SetupError(f"pip ended with {done.returncode}: see above")
