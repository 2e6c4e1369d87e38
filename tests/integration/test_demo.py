"""`make demo`, as a newcomer sees it: by an ordinary user, with every part that it promises."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from capanode.models.catalog import load_catalog
from capanode.models.store import ModelStore
from tests.capanode.sandbox_makers import ORDINARY_USER_ID, command_as_ordinary_user

pytestmark = [pytest.mark.models, pytest.mark.slow]

SHOWN_WITHIN_S = 180.0
STOPPED_WITHIN_S = 40.0
LAST_WORDS = "The market keeps running; Ctrl-C stops it."

# Each with what it is followed by, in this order.
PARTS = (
    r"starting the coordinator\n  /ip4/127\.0\.0\.1/tcp/\d+/p2p/12D3Koo\w+\n",
    r"starting 3 nodes.*\n(  \w{8}  \w+ +rtt +[\d.]+ ms  isolation (bwrap|landlock) .*\n"
    r"(      .*\n)+){3}",
    r"a quote.*\n  for price .*\n(    \w{8}  .* rtt \+ .* prefill \+ .* decode  .*\n){3}"
    r"  for latency",
    r"a chat, streamed.*\n  \S.*\n  \[\d+ tokens in, \d+ out; node \w{8}; matched in \d+ µs\]\n",
    r"embeddings of three.*\n(  \d  .*\n){3}  1 and 2: \+0\.6\d\d\n  1 and 3: .*\n  2 and 3: .*\n",
    r"classification of .*grace_hopper\.jpg\n +39\.\d%  military uniform\n",
    r"the receipt of the chat, checked offline\n  valid: .*\n(  .*\n)+",
    r"balances, and an audit of the books\n  client .*\n(  node .*\n)+  system  operator .*\n"
    r"  audit: green\.",
    r"the API\n  http://127\.0\.0\.1:\d+/v1\n  curl .*\n",
)


@contextmanager
def demo_of_an_ordinary_user(models: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Its output is one stream, as on a terminal. It is gone when the block ends."""
    arguments = ["-m", "sim", "demo", "--keep", f"--models={models}", f"--folder={folder}"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONWARNINGS": "ignore"}
    inherited: tuple[int, ...] = ()
    command = [sys.executable, *arguments]
    if os.geteuid() == 0:
        plan_fd = os.memfd_create("plan")
        command, plan = command_as_ordinary_user(arguments, environment, plan_fd)
        os.write(plan_fd, plan)
        os.lseek(plan_fd, 0, os.SEEK_SET)
        inherited = (plan_fd,)
        os.chown(folder, ORDINARY_USER_ID, ORDINARY_USER_ID)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        pass_fds=inherited,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()


def read_until(process: subprocess.Popen[str], last: str) -> str:
    """What is printed up to a line. A demo that hangs is killed, and what it said is shown."""
    assert process.stdout is not None
    watchdog = threading.Timer(SHOWN_WITHIN_S, process.kill)
    watchdog.start()
    said = ""
    try:
        for line in process.stdout:
            said += line
            if last in line:
                return said
    finally:
        watchdog.cancel()
    pytest.fail(f"the demo ended early:\n{said}")


def test_the_demo_shows_every_part_and_its_market_works_until_it_is_told_to_stop(
    demo_model_store: ModelStore, demo_models: Callable[[str], Path]
) -> None:
    for entry in load_catalog().entries:  # The others need a hub.
        demo_models(entry.manifest.name)
    folder = Path(tempfile.mkdtemp(prefix="capacloud-demo-"))
    try:
        with demo_of_an_ordinary_user(demo_model_store.root, folder) as process:
            said = read_until(process, LAST_WORDS)
            at = 0
            for part in PARTS:
                found = re.compile(part).search(said, at)
                assert found is not None, f"{part!r} is not in\n{said[at:]}"
                at = found.end()
            follow_the_curl_line(said)
            children = psutil.Process(process.pid).children(recursive=True)
            assert all(child.uids().real for child in children), "none of them is root"
            process.send_signal(signal.SIGINT)
            assert process.wait(STOPPED_WITHIN_S) == 130
            assert not [child for child in children if child.is_running()]
    finally:
        shutil.rmtree(folder)


def follow_the_curl_line(said: str) -> None:
    """The request that the reader is invited to paste."""
    pasted = re.search(
        r"curl (?P<url>\S+) -H 'Authorization: (?P<key>[^']+)' \\\n"
        r" +-H 'Content-Type: application/json' -d '(?P<body>[^']+)'",
        said,
    )
    assert pasted is not None, said
    answer = httpx.post(
        pasted["url"],
        headers={"Authorization": pasted["key"], "Content-Type": "application/json"},
        content=pasted["body"],
        timeout=60,
        trust_env=False,
    )
    assert answer.raise_for_status().json()["choices"][0]["message"]["content"]
