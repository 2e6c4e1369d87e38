"""Whole markets, each started once for this folder's tests and gone before the next folder's.

Neither may outlive them: one runs trio in a thread of this very process, which other tests, such as
those of simulated worlds, must have to themselves.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
import trio

from capanode.models.catalog import load_catalog
from capanode.models.store import ModelStore
from coordinator.audit.books import AuditReport, audit
from coordinator.db.engine import InlineRunner, open_database

if TYPE_CHECKING:
    from tests.integration.frail_market import FrailMarket

START_WITHIN_S = 180
STOP_WITHIN_S = 40


@dataclass(frozen=True)
class RunningMarket:
    """How to reach it, as `sim up --json` says."""

    http: str
    api_key: str
    coordinator: str
    data_dir: str
    pids: dict[str, int]

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(
            base_url=self.http,
            headers={"Authorization": f"Bearer {self.api_key}"} | headers,
            timeout=60,
            trust_env=False,
        )

    def command(self, *arguments: str, stdin: str | None = None) -> str:
        """`coordinator …` as its operator or buyer types it. Raises with what it printed."""
        done = self.try_command(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def try_command(
        self, *arguments: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "coordinator", *arguments, f"--data-dir={self.data_dir}"]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, input=stdin, timeout=90
        )

    def audit(self) -> AuditReport:
        """Raises unless the books are right."""
        database = open_database(f"sqlite:///{self.data_dir}/books.sqlite", InlineRunner())
        try:
            report = trio.run(partial(database.read, audit))
        finally:
            database.close()
        assert report.is_green, report.findings
        return report


@pytest.fixture(autouse=True)
def _books_are_right_after_every_test(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "market" in request.fixturenames:
        request.getfixturevalue("market").audit()
    if "frail" in request.fixturenames:
        request.getfixturevalue("shared_frail").market.audit()


@pytest.fixture(scope="package")
def market(
    demo_model_store: ModelStore,
    demo_models: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningMarket]:
    for entry in load_catalog().entries:  # The others need a hub.
        demo_models(entry.manifest.name)
    with run_market(tmp_path_factory.mktemp("market"), demo_model_store.root, nodes=3) as market:
        yield market


@contextmanager
def run_market(folder: Path, model_store: Path, *, nodes: int) -> Iterator[RunningMarket]:
    """`sim up` in a process of its own; leaving raises unless it stops in good order."""
    command = [sys.executable, "-m", "sim", "up", "--json", f"--nodes={nodes}"]
    command += [f"--models={model_store}", f"--folder={folder}"]
    with (folder / "sim.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (folder / "sim.log").read_text()
        plain = json.loads(line)
        yield RunningMarket(
            plain["http"], plain["api_key"], plain["coordinator"], plain["data_dir"], plain["pids"]
        )
    finally:
        _stop(process)
        process.stdout.close()
    _assert_clean(folder)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does. Raises unless it ends in good order, with all that it started."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(STOP_WITHIN_S) == 130
        left = [child for child in children if child.is_running()]
        assert not left, left
    finally:
        # They have sessions of their own: without their parent nobody would stop them.
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()


def _assert_clean(folder: Path) -> None:
    """Whatever the tests sent: no program of the market met a bug."""
    for path in (folder / "logs").glob("*.log"):
        assert "Traceback" not in path.read_text(errors="replace"), path


@pytest.fixture
def frail(shared_frail: "FrailMarket") -> Iterator["FrailMarket"]:
    """A market for tests that kill its parts. A test that fails midway leaves it whole as well."""
    try:
        yield shared_frail
    finally:
        shared_frail.mend()


@pytest.fixture(scope="package")
def shared_frail(
    demo_model_store: ModelStore,
    demo_models: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator["FrailMarket"]:
    from tests.integration.frail_market import CHAT, open_frail_market  # noqa: PLC0415

    demo_models(CHAT)
    with open_frail_market(tmp_path_factory.mktemp("frail"), demo_model_store.root) as shared:
        yield shared
