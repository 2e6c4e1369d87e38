"""`capanode service`: a node that starts with the machine and comes back after a crash."""

import shutil
import subprocess
from typing import Annotated

import typer

from capanode.cli.options import ConfigFile, DataDir, Json, load_config
from capanode.errors import ServiceError
from capanode.service_unit import UNIT_NAME, own_program, unit_path, unit_text
from protocol.programs.output import print_facts, print_json, say

# systemctl only talks to a manager that runs; a start waits for no node.
_WITHIN_S = 60

app = typer.Typer(help="Keep the node running: a systemd unit of this user.", no_args_is_help=True)


@app.command()
def install(
    start: Annotated[bool, typer.Option(help="Whether to start it now, too.")] = True,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
) -> None:
    """Write the unit and enable it. Other settings than these two belong into the configuration."""
    from protocol.programs.keyfile import load_key_file

    config = load_config(data_dir, config_file)
    # A service that fails at each start is worse than none.
    load_key_file(config.key_path)
    arguments = ["--data-dir", str(config.data_dir)]
    if config_file is not None:
        arguments += ["--config", str(config_file.absolute())]
    path = unit_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit_text(own_program(), arguments, drain_s=config.drain_s), encoding="utf-8")
    say(f"wrote {path}")
    if not _systemctl("daemon-reload"):
        say("there is no systemd of this user here: start the node by other means")
        return
    _require("enable", *(["--now"] if start else []), UNIT_NAME)
    say(f"the log: journalctl --user -u {UNIT_NAME} -f")
    say("so that it runs while you are logged out: loginctl enable-linger")


@app.command("uninstall")
def uninstall_command() -> None:
    """Stop the node, and remove the unit. Key, models and receipts stay."""
    path = unit_path()
    if not path.exists():
        raise ServiceError(f"there is no {path}")
    _systemctl("disable", "--now", UNIT_NAME)
    path.unlink()
    _systemctl("daemon-reload")
    say(f"removed {path}")


@app.command()
def status(as_json: Json = False) -> None:
    """Whether the unit is there, enabled and active; `capanode status` tells of the node."""
    facts = {
        "unit": str(unit_path()) if unit_path().exists() else "not installed",
        "enabled": _ask("is-enabled"),
        "active": _ask("is-active"),
    }
    if as_json:
        print_json(facts)
        return
    print_facts(facts)
    say(f"the log: journalctl --user -u {UNIT_NAME} -f")


def _require(*arguments: str) -> None:
    """Raises ServiceError with what systemctl said."""
    done = _run(*arguments)
    if done is None or done.returncode:
        said = "it is not here" if done is None else done.stderr.strip()
        raise ServiceError(f"systemctl --user {' '.join(arguments)}: {said}")


def _systemctl(*arguments: str) -> bool:
    """Whether it could be done."""
    done = _run(*arguments)
    return done is not None and not done.returncode


def _ask(question: str) -> str:
    done = _run(question, UNIT_NAME)
    return "unknown" if done is None else done.stdout.strip() or "unknown"


def _run(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    program = shutil.which("systemctl")
    if program is None:
        return None
    try:
        return subprocess.run(  # noqa: S603 - a program of the system, and words of ours
            [program, "--user", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_WITHIN_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
