"""The systemd unit that keeps a node running for its owner: its text, and where it lies.

A unit of the user, not of the system: the node needs no root. Nothing secret is in it: all settings
are in the configuration file, which only its owner can read.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

UNIT_NAME = "capanode.service"

# Wrong settings do not become right by being read again, and a drained node was meant to end.
WRONG_USAGE_EXIT_CODE = 2
DRAINED_EXIT_CODE = 3
# Workers end, receipts are handed in: beside the drain itself.
_STOP_WITHIN_S = 30


def unit_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where systemd looks for units of the user."""
    configured = environment.get("XDG_CONFIG_HOME", "")
    base = Path(configured) if configured else Path("~/.config").expanduser()
    return base / "systemd" / "user" / UNIT_NAME


def own_program() -> tuple[str, ...]:
    """This program as a service manager starts it: by its full path, in its own environment."""
    script = Path(sys.executable).with_name("capanode")
    return (str(script),) if script.is_file() else (sys.executable, "-m", "capanode")


def unit_text(program: Sequence[str], arguments: Sequence[str], *, drain_s: int) -> str:
    """`arguments` say where the data directory and the configuration are."""
    start = _command([*program, "start", *arguments])
    reload = _command([*program, "config", "reload", *arguments])
    return f"""[Unit]
Description=CapaCloud node
Wants=network-online.target
After=network-online.target

[Service]
ExecStart={start}
ExecReload={reload}
Restart=always
RestartSec=5
RestartPreventExitStatus={WRONG_USAGE_EXIT_CODE} {DRAINED_EXIT_CODE}
SuccessExitStatus={DRAINED_EXIT_CODE}
KillMode=mixed
TimeoutStopSec={drain_s + _STOP_WITHIN_S}

[Install]
WantedBy=default.target
"""


def _command(words: Sequence[str]) -> str:
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """As systemd reads it: `%` and `$` stand for something else unless they are doubled."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped.replace("%", "%%").replace("$", "$$")}"'
