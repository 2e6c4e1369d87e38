"""The ledger's disk runs full while the market is open: jobs are refused, nothing is lost.

The coordinator gets a private mount namespace with a small file system for its books; an
ordinary user gets it in a user namespace. The node is scripted: what fails here is money, not
inference.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trio

from coordinator.endpoint import Endpoint, read_endpoint
from protocol.keys import SigningKey
from protocol.net.clock import SystemClock
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.libp2p import Libp2pTransport
from protocol.services import LoadAck, Method
from tests.coordinator.small_market import MODEL, ScriptedNode

DISK_BYTES = 2 << 20
SOON_S = 30.0


IS_ROOT = os.geteuid() == 0
UNSHARE = ["unshare", "--mount"] if IS_ROOT else ["unshare", "--mount", "--map-root-user"]
NSENTER = ["nsenter"] if IS_ROOT else ["nsenter", "--preserve-credentials"]


def can_mount() -> bool:
    command = [*UNSHARE, "sh", "-c", "mount -t tmpfs none /mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not can_mount(), reason="making a small file system needs root or user namespaces"
    ),
]

# $0 is the data directory, $@ the program.
IN_SMALL_DISK = f'mount -t tmpfs -o size={DISK_BYTES} none "$0" && exec "$@"'


@dataclass(frozen=True)
class Shop:
    """A coordinator on a small disk; `disk` is its data directory, seen from outside."""

    data_dir: Path
    disk: Path
    pid: int
    endpoint: Endpoint

    async def run(self, *arguments: str) -> str:
        """`coordinator …` beside the server: on the same small disk. The node stays awake."""
        spaces = [f"--mount=/proc/{self.pid}/ns/mnt"]
        if not IS_ROOT:
            spaces.insert(0, f"--user=/proc/{self.pid}/ns/user")
        program = [sys.executable, "-m", "coordinator", *arguments]
        done = await trio.run_process(
            [*NSENTER, *spaces, "--", *program, f"--data-dir={self.data_dir}"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def fill(self) -> None:
        with (self.disk / "ballast").open("ab", buffering=0) as ballast:
            for size in (64 << 10, 4 << 10, 1):
                try:
                    while ballast.write(bytes(size)):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        (self.disk / "ballast").unlink()

    async def audit(self) -> dict[str, Any]:
        """Raises unless the books are right."""
        report: dict[str, Any] = json.loads(await self.run("ledger", "audit", "--json"))
        assert report["green"], report["findings"]
        return report


async def wait(condition: Callable[[], Any]) -> None:
    with trio.fail_after(SOON_S):
        while not condition():  # noqa: ASYNC110 - other processes set no trio.Event
            await trio.sleep(0.05)


@asynccontextmanager
async def open_shop(folder: Path) -> AsyncIterator[Shop]:
    data_dir, log = folder / "data", folder / "coordinator.log"
    data_dir.mkdir()
    start = [sys.executable, "-m", "coordinator", "start", f"--data-dir={data_dir}"]
    ports = ["--http=127.0.0.1:0", "--listen=/ip4/127.0.0.1/tcp/0"]
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            [*UNSHARE, "sh", "-c", IN_SMALL_DISK, str(data_dir), *start, *ports],
            stdout=output,
            stderr=output,
        )
    # `unshare` and the shell become the program: its process id is the one we know.
    disk = Path(f"/proc/{process.pid}/root{data_dir}")
    try:
        await wait(lambda: read_endpoint(disk / "endpoint.json"))
        endpoint = read_endpoint(disk / "endpoint.json")
        assert endpoint is not None
        yield Shop(data_dir, disk, process.pid, endpoint)
        assert process.poll() is None, log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()
            await process.wait()


async def beat(node: ScriptedNode) -> None:
    """A node that says nothing for some seconds gets no jobs."""
    while True:
        await trio.sleep(2)
        await node.call(Method.LOAD, node.load(), LoadAck)


async def test_a_full_disk_refuses_jobs_and_loses_nothing(tmp_path: Path) -> None:
    key = SigningKey.generate(random.Random(3).randbytes)
    transport = Libp2pTransport(key, ("/ip4/127.0.0.1/tcp/0",), policy=ALLOW_LOOPBACK)
    # It speaks to whatever transport and clock it is given.
    node = ScriptedNode(key, cast(Any, transport), cast(Any, SystemClock()))
    async with open_shop(tmp_path) as shop, trio.open_nursery() as nursery:
        await shop.run("accounts", "create", "demo", "--credit=1")
        api_key = json.loads(await shop.run("keys", "create", "demo", "--json"))["key"]
        await nursery.start(node.run, shop.endpoint.addresses[0])
        nursery.start_soon(beat, node)
        async with httpx.AsyncClient(
            base_url=shop.endpoint.http,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=SOON_S,
            trust_env=False,
        ) as http:

            async def buy() -> httpx.Response:
                body = {"model": MODEL, "prompt": "Say hello", "max_tokens": 8}
                return await http.post("/v1/completions", json=body)

            assert (await buy()).status_code == 200
            shop.fill()
            # What the write-ahead log has allocated may still take a few transactions.
            refusals = [reply for reply in [await buy() for _ in range(40)] if reply.is_error]
            assert refusals
            for refused in refusals:
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "storage_full"
                assert "Traceback" not in refused.text
            unpaid = len(node.receipts)
            shop.free()
            assert (await buy()).status_code == 200
            assert len(node.receipts) == unpaid + 1

            # What came while the disk was full is handed in again, by client or node.
            with trio.fail_after(SOON_S):
                while (await shop.audit())["open_holds"]:  # noqa: ASYNC110 - as above
                    await trio.sleep(0.2)
        nursery.cancel_scope.cancel()
