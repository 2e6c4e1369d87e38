"""D1: attacks on scarce places before a peer has said who it is."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count

import trio

from coordinator.endpoint import Endpoint
from protocol.codec import encode
from protocol.errors import CapaError
from protocol.framing import HEADER, VERSION, Frame, FrameType, encode_frame
from protocol.limits import MIB
from protocol.net.descriptors import raise_descriptor_limit
from protocol.net.frames import Hello
from protocol.services import LEASE_PROTOCOL, NodesAsk
from sim.siege.attack import Attack, AttackResult
from sim.siege.gateway_user import Service
from sim.siege.ground import Ground, open_other_coordinator, watched_memory
from sim.siege.peer import open_peer
from sim.siege.raw_connection import RawConnection, connect_raw
from sim.siege.small_coordinator import DESCRIPTORS

_CONNECTS = 4
_CONNECTS_WITHIN_S = 8.0
_SILENT = 1_200
_IDLE_HTTP = 1_300
_KEPT_DESCRIPTORS = 300
_FILLS_WITHIN_S = 2.0
_ASK = b"GET /health HTTP/1.1\r\nHost: siege\r\n\r\n"
_READ_BYTES = 4_096

_PARTIAL = 16
_FRAME_BYTES = 4 * MIB
_MISSING_BYTES = 1_000
_PARTIAL_MEMORY_MIB_MAX = 24
_DRIP_EVERY_S = 1.0

_HELLO = encode_frame(Frame(FrameType.HELLO, 0, encode(Hello((VERSION,), "client"))))
_AT_ONCE = 500
_FLOODED_S_MAX = 1.5


async def silent_handshakes(ground: Ground) -> AttackResult:
    """More sockets than there are places connect and say nothing; those that are closed return."""
    before = await _connect(ground.endpoint)
    port = _port_of(ground.endpoint.addresses[0])
    async with _sockets(port, _SILENT, b"", pause_s=0.25) as count:
        under = await _connect(ground.endpoint)
    return AttackResult(
        held=before.is_whole and under.is_whole,
        honest_before=f"new clients: {before}",
        honest_under=f"{under}, beside {count:,} silent sockets",
    )


async def idle_descriptors(ground: Ground) -> AttackResult:
    """Idle HTTP connections take a coordinator's descriptors, which its network needs as well."""
    place = ground.folder / "d1"
    place.mkdir()
    module = "sim.siege.small_coordinator"
    async with open_other_coordinator(place, module=module) as (endpoint, _):
        before = await _connect(endpoint)
        port = int(endpoint.http.rpartition(":")[2])
        async with _sockets(port, _IDLE_HTTP, _ASK, pause_s=2.0) as count:
            under = await _connect(endpoint)
    return AttackResult(
        held=before.is_whole and under.is_whole,
        honest_before=f"new clients: {before}",
        honest_under=f"{under}, beside {count:,} idle HTTP connections to a coordinator with "
        f"{DESCRIPTORS:,} descriptors",
    )


async def partial_frames(ground: Ground) -> AttackResult:
    """Connections send almost all of a large frame of a stream that does not exist, then drip."""
    port = _port_of(ground.endpoint.addresses[0])
    before = await _connect(ground.endpoint)

    async def send_partly() -> None:
        with suppress(OSError, trio.BrokenResourceError):
            connection = await connect_raw(port)
            await connection.begin_frame(999, _FRAME_BYTES)
            await connection.send(bytes(_FRAME_BYTES - _MISSING_BYTES))
            while True:
                await trio.sleep(_DRIP_EVERY_S)
                await connection.send(b"\0")

    async with watched_memory(ground.coordinator_pid) as memory, trio.open_nursery() as nursery:
        for _ in range(_PARTIAL):
            nursery.start_soon(send_partly)
        await trio.sleep(_FILLS_WITHIN_S)
        under = await _connect(ground.endpoint)
        nursery.cancel_scope.cancel()
    return AttackResult(
        held=before.is_whole and under.is_whole and memory.grown_mib <= _PARTIAL_MEMORY_MIB_MAX,
        honest_before=f"new clients: {before}",
        honest_under=f"{under}, {memory.grown_mib:+.0f} MiB by {_PARTIAL} unfinished frames of "
        f"{_FRAME_BYTES // MIB} MiB",
    )


async def frame_floods(ground: Ground) -> AttackResult:
    """Strangers send frames without data at full speed: pings, streams, conversations."""
    port = _port_of(ground.endpoint.addresses[0])
    before = await _connect(ground.endpoint)

    async def flood(make: Callable[[int], bytes], greeting: bytes) -> None:
        while True:
            connection = await connect_raw(port)
            async with trio.open_nursery() as draining:
                draining.start_soon(connection.drain)
                with suppress(trio.BrokenResourceError):
                    await connection.send(greeting)
                    for start in count(_AT_ONCE, _AT_ONCE):
                        frames = map(make, range(start, start + _AT_ONCE))
                        await connection.send(b"".join(frames))

    async with trio.open_nursery() as nursery:
        for make, greeting in (
            (RawConnection.ping, b""),
            (lambda n: RawConnection.open_stream(2 * n + 1, "/siege/1"), b""),
            (_unknown_frame, RawConnection.open_stream(1, LEASE_PROTOCOL, _HELLO)),
        ):
            nursery.start_soon(flood, make, greeting)
        await trio.sleep(_FILLS_WITHIN_S)
        under = await _connect(ground.endpoint)
        nursery.cancel_scope.cancel()
    return AttackResult(
        held=before.is_whole and under.is_whole and under.slowest_s <= _FLOODED_S_MAX,
        honest_before=f"new clients: {before}",
        honest_under=f"{under}, beside floods of pings, streams and frames",
    )


def _unknown_frame(number: int) -> bytes:
    """On a channel of its own, of a type that no version has."""
    return RawConnection.data(1, HEADER.pack(VERSION, 200, number, 0))


async def _connect(endpoint: Endpoint) -> Service:
    """New clients, one after the other, shake hands and ask which nodes there are."""
    answered, slowest_s = 0, 0.0
    for _ in range(_CONNECTS):
        started_at = trio.current_time()
        with trio.move_on_after(_CONNECTS_WITHIN_S), suppress(CapaError):
            async with open_peer(endpoint) as peer:
                await peer.leaser.nodes(NodesAsk())
                answered += 1
        slowest_s = max(slowest_s, trio.current_time() - started_at)
    return Service(answered, _CONNECTS, slowest_s)


@asynccontextmanager
async def _sockets(
    port: int, wanted: int, greeting: bytes, *, pause_s: float
) -> AsyncIterator[int]:
    """So many sockets that say their greeting and no more; one that is closed comes again after a
    pause."""
    count = min(wanted, raise_descriptor_limit() - _KEPT_DESCRIPTORS)

    async def sit() -> None:
        while True:
            with suppress(OSError, trio.BrokenResourceError):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(greeting)
                    while await stream.receive_some(_READ_BYTES):
                        pass
            await trio.sleep(pause_s)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(sit)
        await trio.sleep(_FILLS_WITHIN_S)
        yield count
        nursery.cancel_scope.cancel()


def _port_of(address: str) -> int:
    return int(address.partition("/tcp/")[2].partition("/")[0])


ATTACKS = (
    Attack("frame-floods", "D1", "send frames without data at full speed", frame_floods),
    Attack("silent-handshakes", "D1", "connect often and say nothing", silent_handshakes),
    Attack("idle-descriptors", "D1", "hold descriptors by idle HTTP", idle_descriptors),
    Attack("partial-frames", "D1", "send almost all of large frames", partial_frames),
)
