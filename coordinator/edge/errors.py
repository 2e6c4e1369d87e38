"""What goes wrong with a gateway beside its users."""

from coordinator.errors import CoordinatorError, StorageError


class EdgeError(CoordinatorError):
    """Base class; the message says what to do."""


class FilingError(EdgeError, StorageError):
    """The rows of the gateway's files and batches cannot be read or written."""


class KeysError(EdgeError):
    """The gateway's API keys cannot be used, or are missing where they are needed."""
