"""A machine has a market dial it, on real sockets: what `capanode doctor --online` says."""

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from capanode.config import NodeConfig
from capanode.hardware import MachineCheck
from capanode.reach.trial import reach_findings
from coordinator.app import Coordinator, MarketRules
from coordinator.db.engine import open_database
from protocol.keys import SigningKey
from protocol.net.clock import SystemClock
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.libp2p import Libp2pTransport
from protocol.programs.keyfile import create_key_file
from protocol.programs.runners import InlineRunner
from protocol.programs.runtime import Runtime

LOOPBACK = "/ip4/127.0.0.1/tcp"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def a_market() -> AsyncIterator[str]:
    """Where its coordinator listens."""
    rng = random.Random(3)
    key = SigningKey.generate(rng.randbytes)
    transport = Libp2pTransport(key, (f"{LOOPBACK}/0",), policy=ALLOW_LOOPBACK)
    database = open_database("sqlite://", InlineRunner())
    runtime = Runtime(SystemClock(), rng.randbytes, rng)
    coordinator = Coordinator(key, transport, database, MarketRules(), runtime)
    async with trio.open_nursery() as nursery:
        await nursery.start(coordinator.run)
        yield transport.addresses[0]
        nursery.cancel_scope.cancel()
    database.close()


async def findings(folder: Path, market: str, **flags: object) -> dict[str, MachineCheck]:
    settings = {"data_dir": folder, "coordinators": market, **flags}
    config = NodeConfig.resolve(flags=settings)
    found = await trio.to_thread.run_sync(reach_findings, config)
    return {finding.subject: finding for finding in found}


async def test_a_market_dials_a_machine_and_says_what_it_saw(tmp_path: Path) -> None:
    config = NodeConfig.resolve(flags={"data_dir": tmp_path})
    create_key_file(config.key_path)
    listen = f"{LOOPBACK}/{free_port()}"
    async with a_market() as market:
        found = await findings(tmp_path, market, listen=listen)
        assert found["reachable"].works, found
        assert "reached in" in found["dialled"].detail
        assert found["seen at"].detail == "127.0.0.1"
        # A port that is not forwarded.
        announce = f"{LOOPBACK}/{free_port()}"
        found = await findings(tmp_path, market, listen=listen, announce=announce)
        assert not found["reachable"].works
        assert "nothing of ours answers" in found["dialled"].detail
        assert "`announce` names" in found["reachable"].advice
    found = await findings(tmp_path, market, listen=listen)
    assert "does not answer" in found["market"].detail
