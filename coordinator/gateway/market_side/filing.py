"""What the gateway needs of a market that keeps files and runs batches. `coordinator.batches` has
them; a gateway without one refuses these routes. Calls run on the trio side, but for those of an
`Upload` and of a `StoredContent`, which block and belong into a thread.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from coordinator.gateway.caller import Caller


@dataclass(frozen=True, slots=True)
class FileInfo:
    """`id` is without the prefix that users see."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at_ms: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class BatchError:
    """Why a batch failed, or what it waits for; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A batch that was asked for. `labels` is the user's metadata."""

    input_file_id: str
    endpoint: str
    labels: Mapping[str, str]
    output_lifetime_s: int | None


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """`status` is OpenAI's word; `stamps_ms` has the times of statuses by their names."""

    id: str
    ask: BatchRequest
    status: str
    created_at_ms: int
    expires_at_ms: int
    stamps_ms: Mapping[str, int]
    total: int
    completed: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano: int
    errors: tuple[BatchError, ...]
    output_file_id: str | None
    error_file_id: str | None


@dataclass(frozen=True, slots=True)
class ListPart:
    """At most `limit` items behind the one called `after`, newest first or oldest first."""

    limit: int
    after: str | None = None
    is_ascending: bool = False


class Upload(Protocol):
    """A file that arrives."""

    def write(self, data: bytes) -> None:
        """Raises ApiError when it grows too large, or the account has no room."""
        ...


class StoredContent(Protocol):
    """An open file; close it always."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, length: int) -> bytes:
        """A part that begins at `start`, perhaps shorter; empty behind the end."""
        ...

    def pieces(self, start: int = 0) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class Filing(Protocol):
    """The files and batches of all accounts. Whose they are decides the caller's account: what is
    another's does not exist. All raise ApiError for what a user can mend."""

    @property
    def file_bytes_max(self) -> int: ...

    async def begin_upload(self, caller: Caller) -> Upload: ...

    async def finish_upload(
        self, caller: Caller, upload: Any, *, filename: str, purpose: str, lifetime_s: int | None
    ) -> FileInfo:
        """Durable when this returns."""
        ...

    async def abandon_upload(self, upload: Any) -> None:
        """Also of one that was finished: then it does nothing."""
        ...

    async def find_file(self, caller: Caller, file_id: str) -> FileInfo | None: ...

    async def list_files(
        self, caller: Caller, part: ListPart, purpose: str | None
    ) -> Sequence[FileInfo]: ...

    async def delete_file(self, caller: Caller, file_id: str) -> bool: ...

    async def open_file(self, caller: Caller, file_id: str) -> StoredContent | None: ...

    async def create_batch(self, caller: Caller, ask: BatchRequest) -> BatchInfo: ...

    async def find_batch(self, caller: Caller, batch_id: str) -> BatchInfo | None: ...

    async def list_batches(self, caller: Caller, part: ListPart) -> Sequence[BatchInfo]: ...

    async def cancel_batch(self, caller: Caller, batch_id: str) -> BatchInfo | None:
        """Of a batch that has ended, nothing changes."""
        ...
