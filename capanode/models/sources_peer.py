"""A model from peers that share it, by its digest: several at once, each piece from one of them.

No peer is believed. The manifest has the digest that was asked for, or is dropped. Peers that give
the same outline of a file are asked together, the largest group first; a piece that does not fit
the outline costs its sender its place, and a file that does not fit its digest costs the whole
group theirs. So a liar costs a piece, or, if its lie is an outline that most agree on, one file.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import trio

from capanode.models.errors import DownloadError
from capanode.models.piece_file import FilePiece, PieceFile
from capanode.models.progress import Progress, ProgressCallback
from protocol.blobs import (
    BLOB_READ_BYTES_MAX,
    DIGEST_BYTES,
    BlobMethod,
    BlobRead,
    BlobReply,
    ManifestAsk,
    ManifestReply,
    OutlineAsk,
    OutlineReply,
    piece_bytes_of,
)
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest, PeerId
from protocol.manifest import ModelFile, ModelManifest, decode_manifest, manifest_digest
from protocol.net.errors import NetError
from protocol.net.rpc import RpcClient

R = TypeVar("R")

# More peers than this fill any line.
PEERS_MAX = 16
_READERS_PER_PEER = 4
_ANSWER_WITHIN_S = 20.0
# A piece of 4 MiB at 70 kB/s: a slower peer holds up the others.
_PIECE_WITHIN_S = 60.0
# Failures that may pass: a peer that has so many in a row is not asked again.
_FAILURES_MAX = 3
# An outline of a large file is made while we ask again.
_BUSY_TRIES_MAX = 120
_BUSY_WAIT_MAX_S = 5.0
_BUSY = frozenset({Code.BUSY, Code.DEADLINE_EXCEEDED, Code.RATE_LIMITED})


@dataclass(frozen=True, slots=True)
class PeerAddress:
    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(slots=True)
class _Source:
    """A peer that has the model, until it has failed or lied too often."""

    at: PeerAddress
    failures: int = 0
    why_dropped: str = ""


@dataclass(slots=True)
class _FileWork:
    """One file under way: its pieces that no one is at, and what each must come to."""

    blob: ModelFile
    file: PieceFile
    outline: bytes
    queue: deque[FilePiece] = field(default_factory=deque)
    at_work: int = 0
    # Readers without a piece: one that is under way may be given back.
    idle: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class PeerDownload:
    """One model, asked of `peers` with `rpc`, whose pool runs."""

    def __init__(self, rpc: RpcClient, peers: Sequence[PeerAddress], digest: Digest) -> None:
        self._rpc = rpc
        self._digest = digest
        self._sources = [_Source(peer) for peer in peers[:PEERS_MAX]]

    async def manifest(self) -> ModelManifest:
        """Ask all of them; those that do not have it are left out from here on.

        Raises DownloadError that says what each answered.
        """
        found: list[ModelManifest] = []

        async def ask(source: _Source) -> None:
            body = ManifestAsk(self._digest)
            reply = await self._ask(source, BlobMethod.MANIFEST, body, ManifestReply)
            if reply is None:
                return
            try:
                manifest = decode_manifest(reply.manifest)
            except RemoteProtocolError as error:
                source.why_dropped = str(error)
                return
            if manifest_digest(manifest) == self._digest:
                found.append(manifest)
            else:
                source.why_dropped = "it sent another manifest"

        async with trio.open_nursery() as nursery:
            for source in self._sources:
                nursery.start_soon(ask, source)
        if not found:
            raise DownloadError(f"no peer has {self._digest[:16]}…: {self._told()}")
        return found[0]

    async def fetch(
        self, manifest: ModelManifest, partial: Path, target: Path, progress: ProgressCallback
    ) -> None:
        """Bring every file into `target`; what has arrived waits in `partial` until all are there.

        Raises DownloadError when no peer is left; OSError.
        """
        total = sum(blob.bytes for blob in manifest.files)
        done = 0
        for blob in sorted(manifest.files, key=lambda blob: blob.bytes):
            base = done

            def report(have: int, *, base: int = base) -> None:
                progress(Progress(f"download {manifest.name} from peers", base + have, total))

            await self._fetch_file(blob, partial / blob.sha256, report)
            done += blob.bytes
        placed: dict[Digest, Path] = {}
        for blob in manifest.files:
            path = target / blob.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if blob.sha256 in placed:
                path.hardlink_to(placed[blob.sha256])
            else:
                placed[blob.sha256] = path
                (partial / blob.sha256).replace(path)

    async def _fetch_file(self, blob: ModelFile, path: Path, report: Callable[[int], None]) -> None:
        file = PieceFile(path, blob.bytes, piece_bytes=piece_bytes_of(blob.bytes))
        try:
            while not (file.is_whole and file.hexdigest() == blob.sha256):
                outline, group = await self._outline_of(blob, file)
                _keep_what_fits(file, outline)
                await self._fetch_pieces(_FileWork(blob, file, outline), group, report)
                if file.is_whole and file.hexdigest() != blob.sha256:
                    for source in group:
                        source.why_dropped = source.why_dropped or "its outline was a lie"
            report(blob.bytes)
        finally:
            file.close()

    async def _outline_of(self, blob: ModelFile, file: PieceFile) -> tuple[bytes, list[_Source]]:
        """The outline that most peers give, and those peers. Raises DownloadError."""
        groups: dict[bytes, list[_Source]] = {}

        async def ask(source: _Source) -> None:
            if len(file.pieces) == 1:
                groups.setdefault(bytes.fromhex(blob.sha256), []).append(source)
                return
            body = OutlineAsk(blob.sha256)
            reply = await self._ask(source, BlobMethod.OUTLINE, body, OutlineReply)
            if reply is None:
                return
            if len(reply.digests) != DIGEST_BYTES * len(file.pieces):
                source.why_dropped = "its outline has a wrong length"
                return
            groups.setdefault(reply.digests, []).append(source)

        async with trio.open_nursery() as nursery:
            for source in self._living():
                nursery.start_soon(ask, source)
        if not groups:
            raise DownloadError(
                f"no peer is left for {blob.path}: {self._told()}. What has arrived is kept; try "
                "again later, or another source"
            )
        return max(groups.items(), key=lambda item: len(item[1]))

    async def _fetch_pieces(
        self, work: _FileWork, group: Sequence[_Source], report: Callable[[int], None]
    ) -> None:
        """Until the file is whole or the group has no peer left."""
        work.queue.extend(work.file.missing())
        # Of a small file each peer gives a part, instead of one peer all of it.
        readers = max(1, min(_READERS_PER_PEER, len(work.queue) // len(group)))
        async with trio.open_nursery() as nursery:
            for source in group:
                for _ in range(readers):
                    nursery.start_soon(self._read_pieces, work, source, report)

    async def _read_pieces(
        self, work: _FileWork, source: _Source, report: Callable[[int], None]
    ) -> None:
        """One reader: the next piece, as long as there are some, or others may give theirs back."""
        while not source.why_dropped and (work.queue or work.at_work):
            if not work.queue:
                await work.idle.park()
                continue
            piece = work.queue.popleft()
            work.at_work += 1
            try:
                with trio.move_on_after(_PIECE_WITHIN_S) as deadline:
                    await self._read_piece(work, source, piece, report)
                if deadline.cancelled_caught:
                    _count_failure(source, "it is too slow")
            finally:
                work.at_work -= 1
                if work.file.room(piece):
                    work.queue.append(piece)
                work.idle.unpark_all()

    async def _read_piece(
        self, work: _FileWork, source: _Source, piece: FilePiece, report: Callable[[int], None]
    ) -> None:
        file = work.file
        while room := file.room(piece):
            offset = piece.start + file.have(piece)
            length = min(room, BLOB_READ_BYTES_MAX)
            ask = BlobRead(work.blob.sha256, offset, length)
            reply = await self._ask(source, BlobMethod.READ, ask, BlobReply)
            if reply is None:
                return
            if not 0 < len(reply.data) <= length:
                source.why_dropped = "it sent more or less than was asked for"
                return
            file.write(piece, reply.data)
            report(file.have_bytes)
        if not _fits(file, piece, work.outline):
            file.forget_piece(piece)
            source.why_dropped = "it sent a wrong piece"

    async def _ask(
        self, source: _Source, method: BlobMethod, body: Any, reply: type[R]
    ) -> R | None:
        """The answer; None if this peer has failed, which is counted."""
        for _ in range(_BUSY_TRIES_MAX):
            try:
                answer = await self._rpc.call(
                    source.at.peer,
                    method,
                    body,
                    reply,
                    timeout_s=_ANSWER_WITHIN_S,
                    addresses=source.at.addresses,
                )
            except RemoteProtocolError as error:
                if error.code not in _BUSY:
                    source.why_dropped = source.why_dropped or str(error)
                    return None
                wait_s = (error.retry_after_ms or 500) / 1_000
                await trio.sleep(min(wait_s, _BUSY_WAIT_MAX_S))
            except NetError as error:
                _count_failure(source, str(error))
                if source.why_dropped:
                    return None
                await trio.sleep(0.2)
            else:
                source.failures = 0
                return answer
        source.why_dropped = "it is busy"
        return None

    def _living(self) -> list[_Source]:
        return [source for source in self._sources if not source.why_dropped]

    def _told(self) -> str:
        if not self._sources:
            return "none is known"
        return "; ".join(f"{one.at.peer[-8:]}: {one.why_dropped}" for one in self._sources)


def _count_failure(source: _Source, why: str) -> None:
    source.failures += 1
    if source.failures >= _FAILURES_MAX:
        source.why_dropped = source.why_dropped or why


def _fits(file: PieceFile, piece: FilePiece, outline: bytes) -> bool:
    start = DIGEST_BYTES * piece.number
    digest = hashlib.sha256(file.read_piece(piece)).digest()
    return digest == outline[start : start + DIGEST_BYTES]


def _keep_what_fits(file: PieceFile, outline: bytes) -> None:
    """Forget the whole pieces of an earlier try that do not fit this outline."""
    for piece in file.pieces:
        if not file.room(piece) and not _fits(file, piece, outline):
            file.forget_piece(piece)
