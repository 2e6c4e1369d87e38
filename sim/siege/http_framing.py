"""D4: attacks on the gateway by the framing of HTTP requests, without a key."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio

from sim.siege.attack import Attack, AttackResult
from sim.siege.ground import Ground, watched_memory
from sim.siege.staged_job import answer
from sim.siege.staged_node import StagedNode, staged

_ASKS = 4
_CONNECTIONS = 20
_SENT_BYTES = 2_000_000
_SENDS_WITHIN_S = 3.0
# What twenty connections may make the gateway keep; a few megabytes are noise.
_MEMORY_MIB_MAX = 32

_PIPELINED = b"GET /x HTTP/1.1\r\n\r\n"
_UPGRADE = b"GET /x HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
_CHUNKED = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
_TRAILER = b"a: b\r\n"


def _flood_of(first: bytes, repeated: bytes) -> Callable[[Ground], Awaitable[AttackResult]]:
    """Connections send `first` and then `repeated` without end."""

    async def flood(ground: Ground) -> AttackResult:
        user = await ground.open_gateway_account()
        port = int(ground.endpoint.http.rpartition(":")[2])
        data = first + repeated * (_SENT_BYTES // len(repeated))

        async def send() -> None:
            with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(_SENDS_WITHIN_S):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(data)
                    await trio.sleep(_SENDS_WITHIN_S)

        async with staged(ground.endpoint, StagedNode("d4-framing", answer)):
            before = await user.ask_honestly("d4-framing", _ASKS)
            async with watched_memory(ground.coordinator_pid) as memory, _sending(send):
                under = await user.ask_honestly("d4-framing", _ASKS)
        return AttackResult(
            held=before.is_whole and under.is_whole and memory.grown_mib <= _MEMORY_MIB_MAX,
            honest_before=f"{before}, {memory.before_mib:.0f} MiB",
            honest_under=f"{under}, {memory.grown_mib:+.0f} MiB by {_CONNECTIONS} connections",
        )

    return flood


@asynccontextmanager
async def _sending(send: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Until all of it has been sent or given up."""
    async with trio.open_nursery() as nursery:
        for _ in range(_CONNECTIONS):
            nursery.start_soon(send)
        yield


ATTACKS = (
    Attack("pipelined-requests", "D4", "pipeline without a key", _flood_of(b"", _PIPELINED)),
    Attack("pipelined-upgrades", "D4", "pipeline upgrades", _flood_of(b"", _UPGRADE)),
    Attack("endless-trailers", "D4", "send trailers without end", _flood_of(_CHUNKED, _TRAILER)),
)
