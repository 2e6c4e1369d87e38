"""What can go wrong with files and batches."""

from coordinator.errors import CoordinatorError
from protocol.errors import Code


class FilesError(CoordinatorError):
    """Base of what can go wrong here."""


class DamagedFileError(FilesError):
    """A sealed file is not what was written, or another key sealed it."""


class FilesFullError(FilesError):
    """The folder's disk, or what is allowed of it, is full."""

    code = Code.STORAGE_FULL
