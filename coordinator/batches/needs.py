"""What files and batches need of others, whether they are a coordinator's or a gateway's beside its
users."""

from collections.abc import Container, Sequence
from typing import Protocol

from coordinator.db.filing_rows import Page, StoredBatch, StoredFile
from coordinator.gateway.caller import Caller
from coordinator.ledger.accounts import AccountId


class CallerFinder(Protocol):
    async def caller_of(self, api_key_id: str) -> Caller | None:
        """Who an API key stands for; None if it is unknown or was revoked."""
        ...


class FilingRows(Protocol):
    """Where the rows of files and batches are. What is written is durable when it returns. Methods
    raise StorageError and its kin."""

    async def bytes_by_account(self) -> dict[str, int]: ...
    async def file_ids(self) -> set[str]: ...
    async def add_file(self, stored: StoredFile) -> None: ...
    async def find_file(self, file_id: str) -> StoredFile | None: ...
    async def list_files(
        self, account: AccountId, page: Page, *, purpose: str | None
    ) -> list[StoredFile]: ...
    async def expired_files(self, *, now_ms: int, limit: int) -> list[StoredFile]: ...
    async def delete_file(self, file_id: str) -> bool:
        """False if there is no such file."""
        ...

    async def add_batch(self, batch: StoredBatch) -> None: ...
    async def store_batch(self, batch: StoredBatch) -> None: ...
    async def end_batch(self, batch: StoredBatch, files: Sequence[StoredFile]) -> None:
        """Its files and the word that they are there, or neither."""
        ...

    async def find_batch(self, batch_id: str) -> StoredBatch | None: ...
    async def list_batches(self, account: AccountId, page: Page) -> list[StoredBatch]: ...
    async def open_batches(self) -> list[StoredBatch]:
        """Those that have not ended, oldest first."""
        ...


class Leftovers(Protocol):
    """Jobs of batches that an earlier process had under way when it was killed.

    Their answers never came to us, and their lines run again. So the client's word is that it got
    nothing of them: what a node then hands in is paid by that. A job whose answer is in a log was
    answered: its node is paid by its receipt.
    """

    async def disown(self, batches: Sequence[StoredBatch], answered: Container[str]) -> None:
        """Sign that nothing came of the open leases of these batches that are not `answered`. The
        ids of a batch's jobs begin as its own id does."""
        ...
