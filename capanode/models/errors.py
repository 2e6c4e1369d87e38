"""What can go wrong with a model on its way to this node, each with what to do about it."""

from protocol.errors import CapaError


class ModelError(CapaError):
    """Base of every error about getting, converting or keeping a model."""


class UnknownModelError(ModelError):
    """No such name in the catalog or in the store."""


class SourceError(ModelError):
    """The source is not spelled right, or does not hold what it should."""


class DownloadError(ModelError):
    """The network, the index or the hub did not deliver; trying again may help."""


class AccessDeniedError(DownloadError):
    """The hub wants a token, or the token's owner has not accepted the model's terms."""


class UnsafeModelError(ModelError):
    """The model carries code (pickle, `auto_map`), a link, or a path that leaves its folder."""


class ConversionError(ModelError):
    """The converter refused the files, crashed, or ran out of time or memory."""


class DigestMismatchError(ModelError):
    """Bytes are not the ones that were asked for."""


class CorruptModelError(ModelError):
    """A model in the store is incomplete or damaged; pulling it again repairs it."""


class ModelInUseError(ModelError):
    """A node serves the model, or the configuration promises it."""


class StoreFullError(ModelError):
    """The disk under the store is full, or the store has all that it may take."""


class StorageDeniedError(ModelError):
    """This user may not write where the store is."""


class StoreBusyError(ModelError):
    """Another process held the store's lock for too long."""
