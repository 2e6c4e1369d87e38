"""Environments of stock clients, made once for a machine and used by all tests.

Clients want other versions of what we depend on, and of each other. A Python environment is made
from `requirements/NAME.txt`, whose lines pin everything, so that nothing is resolved; one for
Node.js from the `package-lock.json` in `node/`. Both live below `.capacloud/clients`, and are made
again when their pins change.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.openai_api import Api

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".capacloud" / "clients"
# A slow mirror and a busy machine.
INSTALL_WITHIN_S = 300
RUN_WITHIN_S = 60


def python_environment(name: str) -> Path:
    """The interpreter that has the client packages of `requirements/NAME.txt`."""
    pins = HERE / "requirements" / f"{name}.txt"

    def install(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        pip = [sys.executable, "-m", "pip", f"--python={folder / 'bin' / 'python'}", "install"]
        # Of what is installed, clients import a small part: only that is compiled, then.
        pip += ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
        _run([*pip, "-r", str(pins)])

    return _made(name, pins, install) / "bin" / "python"


def node_modules() -> Path:
    """A folder in which Node.js finds the client packages."""

    def install(folder: Path) -> None:
        folder.mkdir()
        for file in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "node" / file, folder)
        _run(["npm", "ci", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)])

    return _made("node", HERE / "node" / "package-lock.json", install)


def run_script(command: list[str], script: str, api: Api, *arguments: str) -> Any:
    """What a client's program in `scripts/` prints: one JSON value. It is told where the API is."""
    told = [api.url, api.key, api.chat_model, *arguments]
    done = subprocess.run(
        [*command, str(HERE / "scripts" / script), *told],
        capture_output=True,
        text=True,
        timeout=RUN_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    return json.loads(done.stdout)


def run_python(environment: str, script: str, api: Api, *arguments: str) -> Any:
    return run_script([str(python_environment(environment))], script, api, *arguments)


def run_node(script: str, api: Api, *arguments: str) -> Any:
    """Node.js looks for modules beside a program, so the program is put beside them."""
    place = node_modules() / script
    shutil.copy(HERE / "scripts" / script, place)
    return run_script(["node"], str(place), api, *arguments)


def _made(name: str, pins: Path, install: Callable[[Path], None]) -> Path:
    """The environment's folder; `install` makes it if these pins have none yet."""
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    folder = ENVIRONMENTS / name
    stamp = folder / ".made-from"
    with _locked(name):
        if not stamp.exists() or stamp.read_text() != digest:
            shutil.rmtree(folder, ignore_errors=True)
            install(folder)
            stamp.write_text(digest)
    return folder


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """Test processes share the environments."""
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    with (ENVIRONMENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_WITHIN_S, check=False
    )
    assert done.returncode == 0, done.stderr[-4_000:]
