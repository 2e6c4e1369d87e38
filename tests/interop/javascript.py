"""Runs programs of this folder with Node. Their packages come from npm, pinned by a lock file."""

import fcntl
import hashlib
import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent
INSTALL_WITHIN_S = 300
RUN_WITHIN_S = 60
ANSWER_WITHIN_S = 60
STOP_WITHIN_S = 10


class PeerError(Exception):
    """The peer was refused, or refuses. `code` is a wire code, or `internal` for its mistakes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class JavascriptPeer:
    """A running program of this folder. It takes calls as lines of JSON, one at a time."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.id = ""  # Its peer id, once it has one.
        self._log = log
        self._calls = 0
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def call(self, name: str, **arguments: Any) -> Any:
        """Raises PeerError with the code of a refusal."""
        self.send(name, **arguments)
        return self.answer()

    def send(self, name: str, **arguments: Any) -> None:
        """A call whose answer is read later, by `answer`."""
        assert self.process.stdin is not None
        self._calls += 1
        line = json.dumps({"id": self._calls, "call": name, "with": arguments})
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        try:
            line = self._answers.get(timeout=ANSWER_WITHIN_S)
        except queue.Empty:
            raise AssertionError(f"no answer to call {self._calls}: {self._complaints()}") from None
        assert line, f"the program has ended: {self._complaints()}"
        told = json.loads(line)
        assert told["id"] == self._calls, told
        if "error" in told:
            raise PeerError(**told["error"])
        return told["result"]

    def close(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(STOP_WITHIN_S)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _complaints(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]


@contextmanager
def start_peer(program: str, log: Path) -> Iterator[JavascriptPeer]:
    """What the program complains about goes into the file `log`."""
    with log.open("w") as complaints:
        process = subprocess.Popen(
            [find_node(), program],
            cwd=FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )
    peer = JavascriptPeer(process, log)
    try:
        yield peer
    finally:
        peer.close()


def run_javascript(program: str, *arguments: str) -> Any:
    """The JSON that the program prints. Raises CalledProcessError."""
    command = [find_node(), program, *arguments]
    done = subprocess.run(
        command, capture_output=True, check=True, cwd=FOLDER, timeout=RUN_WITHIN_S
    )
    return json.loads(done.stdout)


@cache
def find_node() -> str:
    """Node, with the packages installed; skips the test where npm is missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed: the peer of these tests is JavaScript")
    # The lock is outside of node_modules, which npm removes. Tests run in several processes.
    with (FOLDER / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = FOLDER / "node_modules" / ".installed"
        wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
        if not stamp.exists() or stamp.read_text() != wanted:
            # No package may run a script of its own while it is installed.
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            subprocess.run(command, check=True, cwd=FOLDER, timeout=INSTALL_WITHIN_S)
            stamp.write_text(wanted)
    return node
