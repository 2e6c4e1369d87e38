"""What we have signed and sent, on disk before it leaves.

After a crash the same key finds the same signed bytes, so that a payment is never signed twice
under two nonces. One JSON object a line, appended and synced; a line that was cut off by a crash
was never sent, so it is dropped.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from contracts.units import Address


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
    """One file per account and chain; one process writes it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        whole = b""
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                os.truncate(path, len(whole))
        for line in whole.splitlines():
            entry = _parse(line)
            self._entries[entry.key] = entry

    def write(self, entry: Sent) -> None:
        with self._path.open("ab") as file:
            file.write(json.dumps(asdict(entry)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        super().write(entry)


def _parse(line: bytes) -> Sent:
    fields = json.loads(line)
    fields["raw"], fields["hashes"] = tuple(fields["raw"]), tuple(fields["hashes"])
    return Sent(**fields)
