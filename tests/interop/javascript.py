"""Runs programs of this folder with Node. Their packages come from npm, pinned by a lock file."""

import fcntl
import hashlib
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent
INSTALL_WITHIN_S = 300
RUN_WITHIN_S = 60


@cache
def find_node() -> str:
    """Node, with the packages installed; skips the test where npm is missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed: the peer of these tests is JavaScript")
    modules = FOLDER / "node_modules"
    modules.mkdir(exist_ok=True)
    # The lock is outside of node_modules, which npm removes. Tests run in several processes.
    with (FOLDER / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = modules / ".installed"
        wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
        if not stamp.exists() or stamp.read_text() != wanted:
            # No package may run a script of its own while it is installed.
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            subprocess.run(command, check=True, cwd=FOLDER, timeout=INSTALL_WITHIN_S)
            stamp.write_text(wanted)
    return node


def run_javascript(program: str, *arguments: str) -> Any:
    """The JSON that the program prints. Raises CalledProcessError."""
    command = [find_node(), program, *arguments]
    done = subprocess.run(
        command, capture_output=True, check=True, cwd=FOLDER, timeout=RUN_WITHIN_S
    )
    return json.loads(done.stdout)
