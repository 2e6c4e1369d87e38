"""What happens to us when the process on the other side freezes or dies."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.ids import PeerId
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.errors import NetTimeout, StreamClosed
from protocol.net.libp2p import Libp2pTransport
from protocol.net.transport import Stream
from tests.integration.libp2p_peer import SINK
from tests.protocol.net.contract import ECHO, key_of, wait_gone

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
async def process() -> AsyncIterator[tuple[trio.Process, str]]:
    """The peer's process and its address."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.integration.libp2p_peer"],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(60):
            line = b""
            while not line.endswith(b"\n"):
                piece = await process.stdout.receive_some()
                assert piece, "the peer did not start"
                line += piece
        yield process, line.decode().strip()
    finally:
        process.kill()
        await process.wait()
        await process.stdout.aclose()


@pytest.fixture
async def client(nursery: trio.Nursery) -> Libp2pTransport:
    client = Libp2pTransport(key_of(1), policy=ALLOW_LOOPBACK)
    await nursery.start(client.run)
    return client


async def open_and_talk(client: Libp2pTransport, address: str) -> tuple[PeerId, Stream]:
    peer = await client.connect(address, timeout_s=10)
    stream = await client.open_stream(peer, ECHO, timeout_s=10)
    await stream.send_all(b"hello")
    assert await stream.receive_some() == b"hello"
    return peer, stream


@pytest.mark.slow
async def test_frozen_peer_is_noticed_within_ten_seconds(
    client: Libp2pTransport, process: tuple[trio.Process, str]
) -> None:
    child, address = process
    peer, stream = await open_and_talk(client, address)
    os.kill(child.pid, signal.SIGSTOP)
    frozen_at = trio.current_time()
    with pytest.raises(NetTimeout):
        await client.ping(peer, timeout_s=0.5)
    with trio.fail_after(30):
        with pytest.raises(StreamClosed):
            await stream.receive_some()
        await wait_gone(client, peer)
    assert trio.current_time() - frozen_at < 10
    await wait_all_tasks_blocked()  # A connection is counted a turn after it works no more.
    assert client.statistics().peers_timed_out == 1
    # It was only asleep.
    os.kill(child.pid, signal.SIGCONT)
    await open_and_talk(client, address)


@pytest.mark.slow
async def test_frozen_peer_with_a_full_socket_can_be_left(
    client: Libp2pTransport, process: tuple[trio.Process, str]
) -> None:
    child, address = process
    peer, _ = await open_and_talk(client, address)
    sinks = [await client.open_stream(peer, SINK, timeout_s=10) for _ in range(40)]
    os.kill(child.pid, signal.SIGSTOP)

    async def pour(stream: Stream) -> None:
        with pytest.raises(StreamClosed):
            await stream.send_all(b"x" * 2_000_000)

    with trio.fail_after(10):
        async with trio.open_nursery() as pours:
            for sink in sinks:
                pours.start_soon(pour, sink)
            await trio.sleep(1)
            await client.disconnect(peer)
    assert client.connected_peers() == frozenset()


async def test_killed_peer_is_noticed_at_once(
    client: Libp2pTransport, process: tuple[trio.Process, str]
) -> None:
    child, address = process
    peer, stream = await open_and_talk(client, address)
    child.kill()
    with trio.fail_after(7):
        with pytest.raises(StreamClosed):
            await stream.receive_some()
        await wait_gone(client, peer)
    assert client.connected_peers() == frozenset()
