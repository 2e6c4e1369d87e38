"""The answers of a batch as they come: the durable truth of which lines are done.

A record holds the answers of one job, and is on the disk before the job's receipt is signed. So a
process that takes a batch up again reads here what was answered, and runs the rest; a record that
was cut by a crash was never signed for. Records are sealed like files, each after its length.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from coordinator.batches.blobs import Sealer, open_private, write_all
from coordinator.batches.errors import DamagedFileError
from protocol.codec import decode, encode
from protocol.errors import RemoteProtocolError
from protocol.pricing import Units

_LENGTH_BYTES = 4
# The answers of one job: its output is bounded far below, also as JSON.
RECORD_BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LineRecord:
    """What became of some lines. `text` is what the output file, or the error file, says of them,
    one line each; `job_ids` are the jobs that were bought for them."""

    lines: tuple[int, ...]
    has_failed: bool
    job_ids: tuple[str, ...]
    units: Units
    cost_nano: int
    text: bytes


class LineLog:
    """Appends and reads records. Everything here blocks: call it in a thread, one call at a
    time."""

    def __init__(self, path: Path, sealer: Sealer) -> None:
        self._path = path
        self._sealer = sealer
        self._descriptor = -1
        self._records = 0
        self.size = 0

    def create(self) -> None:
        """Raises FilesFullError."""
        if not self._path.exists():
            os.close(open_private(self._path))

    def open(self) -> Iterator[LineRecord]:
        """Every record so far; then `append` goes on behind the last whole one.

        Raises DamagedFileError.
        """
        self.create()
        self.close()
        self._descriptor = os.open(self._path, os.O_RDWR)
        self._records = self.size = 0
        total = os.fstat(self._descriptor).st_size
        while (record := self._read_next(total)) is not None:
            yield record
        os.ftruncate(self._descriptor, self.size)
        os.lseek(self._descriptor, self.size, os.SEEK_SET)

    def read_heads(self) -> list[LineRecord]:
        """Every record so far, without its text. Raises DamagedFileError."""
        return [replace(record, text=b"") for record in self.open()]

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)

    def append(self, record: LineRecord) -> None:
        """Durable when this returns. Raises FilesFullError; then nothing is kept."""
        sealed = self._sealer.seal(self._records, encode(record))
        try:
            write_all(self._descriptor, len(sealed).to_bytes(_LENGTH_BYTES) + sealed)
            os.fdatasync(self._descriptor)
        except BaseException:
            # Half a record would be the end of the log to its next reader.
            os.ftruncate(self._descriptor, self.size)
            os.lseek(self._descriptor, self.size, os.SEEK_SET)
            raise
        self._records += 1
        self.size += _LENGTH_BYTES + len(sealed)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read_next(self, total: int) -> LineRecord | None:
        head = os.pread(self._descriptor, _LENGTH_BYTES, self.size)
        length = int.from_bytes(head)
        end = self.size + _LENGTH_BYTES + length
        if len(head) < _LENGTH_BYTES or end > total or not 0 < length <= RECORD_BYTES_MAX:
            return None
        try:
            sealed = os.pread(self._descriptor, length, self.size + _LENGTH_BYTES)
            record = decode(LineRecord, self._sealer.open(self._records, sealed))
        except (DamagedFileError, RemoteProtocolError):
            if end == total:
                return None  # the last one, which a crash has cut
            raise DamagedFileError("the answers of a batch are damaged on the disk") from None
        self._records += 1
        self.size = end
        return record
