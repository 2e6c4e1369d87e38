"""The serving side of `BLOB_PROTOCOL`: files of shared models for other nodes, at a pace that
leaves the line to jobs. Only where the operator has asked for it."""

import time
from functools import partial
from pathlib import Path
from typing import Self

import trio

from protocol.blobs import (
    BlobMethod,
    BlobRead,
    BlobReply,
    ManifestAsk,
    ManifestReply,
    OutlineAsk,
    OutlineReply,
)
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId
from protocol.limits import FRAME_BYTES_MAX, MIB
from protocol.net.link import LinkLimits, serve_channels
from protocol.net.rpc import RpcServer
from protocol.net.transport import Stream
from protocol.net.turns import GroupTurns
from protocol.pace import Pace
from protocol.programs.runners import Runner, ThreadRunner
from protocol.programs.sharing.model_folder import ModelFolder
from protocol.programs.sharing.shared_blobs import DamagedBlobError, SharedBlobs
from protocol.token_buckets import Rate

# Reads at once: the disk and the line have no use for more.
_AT_ONCE = 4
# What one peer may have us hold: so many reads, answered or not.
_READS_PER_PEER = 8
_LIMITS = LinkLimits(channels_max=_READS_PER_PEER)
_BURST_BYTES = 4 * MIB
# An outline takes half a minute of a large file: it is made in turns of this, one ask each.
_OUTLINE_TURN_S = 5.0
_AGAIN_MS = 500
# What a frame adds to a body that is nearly as long as a frame may be.
_BODY_SPARE_BYTES = 1_024
_MBIT_BYTES = 1_000_000 // 8


class BlobServer:
    """`handle` goes to the transport. Peers take turns at reading, so that one that asks for much
    delays itself; all of them together get `bytes_per_s`."""

    def __init__(self, blobs: SharedBlobs, *, role: str, bytes_per_s: int, runner: Runner) -> None:
        self._blobs = blobs
        self._role = role
        self._runner = runner
        self._pace = Pace(Rate(float(bytes_per_s), _BURST_BYTES))
        self._turns = GroupTurns(_AT_ONCE)
        self._outline_turn = GroupTurns(1)
        self._rpc = RpcServer()
        self._rpc.register(BlobMethod.MANIFEST, ManifestAsk, self._manifest)
        self._rpc.register(BlobMethod.OUTLINE, OutlineAsk, self._outline)
        self._rpc.register(BlobMethod.READ, BlobRead, self._read)

    @classmethod
    def of_store(cls, root: Path, *, role: str, mbit_per_s: int) -> Self:
        """With threads of its own: reads of the disk for strangers never wait in front of a
        receipt."""
        return cls(
            SharedBlobs(ModelFolder(root)),
            role=role,
            bytes_per_s=mbit_per_s * _MBIT_BYTES,
            runner=ThreadRunner(),
        )

    async def handle(self, stream: Stream) -> None:
        await serve_channels(stream, self._rpc.serve_channel, role=self._role, limits=_LIMITS)

    async def _manifest(self, peer: PeerId, ask: ManifestAsk) -> ManifestReply:
        turn = await self._turns.wait(peer)
        try:
            found = await self._runner.run_read(partial(self._blobs.manifest, ask.manifest_digest))
        finally:
            turn.end()
        if found is None or len(found) > FRAME_BYTES_MAX - _BODY_SPARE_BYTES:
            raise _not_here()
        return ManifestReply(found)

    async def _outline(self, peer: PeerId, ask: OutlineAsk) -> OutlineReply:
        turn = await self._outline_turn.wait(peer)
        try:
            outline = await self._runner.run_read(partial(self._work_on_outline, ask))
        except DamagedBlobError:
            raise _not_here() from None
        finally:
            turn.end()
        if outline is None:
            raise RemoteProtocolError(
                "the outline is being made", code=Code.BUSY, retry_after_ms=_AGAIN_MS
            )
        return OutlineReply(outline)

    def _work_on_outline(self, ask: OutlineAsk) -> bytes | None:
        """In a thread."""
        path = self._blobs.path(ask.sha256)
        if path is None:
            raise _not_here()
        until_s = time.monotonic() + _OUTLINE_TURN_S
        return self._blobs.outline(ask.sha256, path, is_time_up=lambda: time.monotonic() >= until_s)

    async def _read(self, peer: PeerId, ask: BlobRead) -> BlobReply:
        turn = await self._turns.wait(peer)
        try:
            data = await self._runner.run_read(partial(self._read_shared, ask))
            await trio.sleep(self._pace.pause_s(len(data), trio.current_time()))
        finally:
            turn.end()
        return BlobReply(data)

    def _read_shared(self, ask: BlobRead) -> bytes:
        """In a thread."""
        path = self._blobs.path(ask.sha256)
        if path is None:
            raise _not_here()
        return self._blobs.read(path, ask.offset, ask.length)


def _not_here() -> RemoteProtocolError:
    """The same for what is not here and for what is not shared."""
    return RemoteProtocolError("this file is not shared here", code=Code.NOT_FOUND)
