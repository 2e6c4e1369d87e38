"""A real local chain: anvil from npm, pinned, started and stopped by the tests."""

import fcntl
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.chain import Policy, Sender
from contracts.journal import Journal, MemoryJournal
from contracts.rpc import HttpRpc
from contracts.vouchers import EvmKey

ANVIL = "@foundry-rs/anvil@1.7.1"
CACHE = Path(__file__).resolve().parent.parent.parent / ".capacloud" / "npm"
CHAIN_ID = 31_337
# A local chain makes a block per transaction; a public one needs the default patience.
LOCAL_POLICY = Policy(confirmations=1, poll_s=0.01, bump_after_s=5, timeout_s=20)


def find_anvil() -> Path:
    """The program, installed on first use; skips the test where there is no npm."""
    program = CACHE / "node_modules" / ".bin" / "anvil"
    npm = shutil.which("npm")
    if npm is None and not program.exists():
        pytest.skip("npm is not installed: the local chain comes from the npm package " + ANVIL)
    CACHE.parent.mkdir(exist_ok=True)
    # Tests run in several processes, and the program is there before all that it loads is.
    with CACHE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if npm is not None and not program.exists():
            _install(npm)
    return program


def _install(npm: str) -> None:
    """All or nothing: an interrupted installation is begun anew."""
    fresh = CACHE.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    command = [npm, "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(fresh), ANVIL]
    subprocess.run(command, check=True, timeout=300)
    shutil.rmtree(CACHE, ignore_errors=True)
    fresh.rename(CACHE)


@contextmanager
def run_anvil(port: int = 0) -> Iterator[str]:
    """The URL of a fresh chain."""
    command = [str(find_anvil()), "--port", str(port), "--chain-id", str(CHAIN_ID)]
    command += ["--hardfork", "cancun", "--gas-limit", "60000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment())
    output = process.stdout
    assert output is not None
    # It goes on writing for ever, and would stop at a full pipe that nobody reads.
    drain = threading.Thread(target=output.read, daemon=True)
    try:
        place = next((line for line in output if line.startswith("Listening on ")), None)
        if place is None:
            raise RuntimeError("anvil did not start")
        drain.start()
        yield f"http://{place.split()[-1]}"
    finally:
        process.terminate()
        process.wait(timeout=10)
        if drain.ident is not None:
            drain.join()
        output.close()


def _environment() -> dict[str, str]:
    return {**os.environ, "NO_COLOR": "1"}


class Anvil:
    """A chain with time in our hands and money for everyone."""

    def __init__(self, rpc: HttpRpc) -> None:
        self.rpc = rpc

    async def call(self, method: str, *params: Any) -> Any:
        return await self.rpc.call(method, *params)

    async def sender(self, key: EvmKey, journal: Journal | None = None) -> Sender:
        """A sender for `key` with ether for its gas."""
        await self.rpc.call("anvil_setBalance", key.address, hex(10**24))
        return Sender(
            self.rpc, key, CHAIN_ID, journal=journal or MemoryJournal(), policy=LOCAL_POLICY
        )

    async def pass_time(self, seconds: int) -> None:
        await self.rpc.call("evm_increaseTime", seconds)
        await self.rpc.call("evm_mine")


@asynccontextmanager
async def open_anvil(url: str) -> AsyncIterator[Anvil]:
    async with httpx.AsyncClient() as client:
        yield Anvil(HttpRpc(url, client))
