"""What we have signed and sent, on disk before it leaves.

After a crash the same key finds the same signed bytes, so that a payment is never signed twice
under two nonces. One JSON object a line, appended and synced; a line that was cut off by a crash
was never sent, so it is dropped.
"""

import itertools
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from contracts.errors import BadConfigurationError
from contracts.units import Address
from protocol.programs.locks import try_lock


@dataclass(frozen=True, slots=True)
class Sent:
    """One transaction. A fee bump adds a variant: same nonce and data, other bytes."""

    key: str
    nonce: int
    to: Address | None
    data: str
    gas: int
    tip_wei: int
    fee_wei: int
    # Signed bytes in hex, and their hashes, oldest first.
    raw: tuple[str, ...]
    hashes: tuple[str, ...]
    done: bool = False

    def finished(self) -> "Sent":
        return replace(self, done=True)


class Journal(Protocol):
    def find(self, key: str) -> Sent | None: ...

    def open_entries(self) -> list[Sent]:
        """What was sent and is not known to be confirmed, by nonce."""
        ...

    def next_nonce(self) -> int:
        """One more than the highest nonce that was ever signed."""
        ...

    def write(self, entry: Sent) -> None:
        """Durable when it returns."""
        ...


def continued_key(journal: Journal, purpose: str) -> str:
    """The key of the purpose's unfinished transaction, or of its next one if all are done.

    So a command that was interrupted goes on when it is repeated, and one that was finished is done
    a second time, as the person who types it twice expects.
    """
    keys = (f"{purpose}-{number}" for number in itertools.count())
    return next(key for key in keys if not ((entry := journal.find(key)) and entry.done))


class MemoryJournal:
    """For readers, tests and one-off commands: forgets everything with the process."""

    def __init__(self) -> None:
        self._entries: dict[str, Sent] = {}

    def find(self, key: str) -> Sent | None:
        return self._entries.get(key)

    def open_entries(self) -> list[Sent]:
        waiting = [entry for entry in self._entries.values() if not entry.done]
        return sorted(waiting, key=lambda entry: entry.nonce)

    def next_nonce(self) -> int:
        return max((entry.nonce + 1 for entry in self._entries.values()), default=0)

    def write(self, entry: Sent) -> None:
        self._entries[entry.key] = entry


class FileJournal(MemoryJournal):
    """One file per account and chain, locked: a second writer would take the first one's nonces.

    Use it as a context manager. Raises BadConfigurationError if another process has it, or if it
    cannot be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            self._file = _open_durably(path)
        except OSError as error:
            raise BadConfigurationError(f"cannot open {path}: {error.strerror}") from error
        if not try_lock(self._file.fileno()):
            self._file.close()
            raise BadConfigurationError(
                f"{path} is in use: wait until the other command with this key has ended"
            )
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        try:
            for line in whole.splitlines():
                entry = _parse(line)
                self._entries[entry.key] = entry
        except (ValueError, KeyError, TypeError) as error:
            self._file.close()
            raise BadConfigurationError(
                f"{path} is damaged. Look up which of its transactions were mined before you move "
                "it away: what it holds would be signed anew"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, entry: Sent) -> None:
        self._file.write(json.dumps(asdict(entry)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        super().write(entry)


def _open_durably(path: Path) -> BinaryIO:
    """For reading and appending. The name must outlive a crash as the lines do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+b")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return file


def _parse(line: bytes) -> Sent:
    fields = json.loads(line)
    fields["raw"], fields["hashes"] = tuple(fields["raw"]), tuple(fields["hashes"])
    return Sent(**fields)
