"""What can go wrong in the coordinator, each with the wire code that its cause is told.

Messages may reach a client through the gateway: they name what happened and what to do, never a
path, a statement or a key.
"""

from protocol.errors import CapaError, Code


class CoordinatorError(CapaError):
    """Base of every error that the coordinator raises on purpose; `code` is what the wire says."""

    code: Code = Code.INTERNAL


class StorageError(CoordinatorError):
    """The database refused or lost a statement; nothing of the transaction was kept."""


class StorageFullError(StorageError):
    """No room left for the transaction. It was rolled back; it may be sent again unchanged."""

    code = Code.STORAGE_FULL


class StorageBusyError(StorageError):
    """Another process held the database's write lock for longer than we wait."""

    code = Code.BUSY


class ConstraintError(StorageError):
    """The database refused a row that breaks an invariant: a duplicate, or a missing parent."""

    code = Code.ALREADY_EXISTS


class InvalidRowError(StorageError):
    """A value that no column can hold: a number beyond 64 bits, or text that is not Unicode."""

    code = Code.INVALID_INPUT


class SchemaVersionError(StorageError):
    """The database was written by another version of this program."""


class DamagedBooksError(StorageError):
    """What the database holds is not what was written to it; the message says what to do."""


class LedgerError(CoordinatorError):
    """The ledger did not take a posting; no account changed."""


class LedgerClosedError(LedgerError):
    """The ledger's writer is not running, or stopped before it took the posting."""

    code = Code.COORDINATOR_LOST


class LedgerBusyError(LedgerError):
    """More postings wait than the writer's queue takes: try again shortly."""

    code = Code.BUSY
