"""What can go wrong in a node, each with what to do about it.

Refusals that a peer is told are `protocol.errors.RemoteProtocolError` with a wire code; these here
are for the operator. The sandbox and the model store have error modules of their own.
"""

from protocol.errors import CapaError


class NodeError(CapaError):
    """Base of every error that the node itself raises on purpose."""


class NotRunningError(NodeError):
    """Nothing answers at the status socket."""


class SocketError(NodeError):
    """The status socket cannot be made."""


class OwnerCommandError(NodeError):
    """A running node does not do what its owner asked for."""


class ServiceError(NodeError):
    """The service manager does not do what was asked."""


class PauseError(NodeError):
    """That the node is paused cannot be noted, or forgotten, on disk."""


class IsolationError(NodeError):
    """This machine cannot confine a worker, so the node must not run other people's jobs."""


class NothingToServeError(NodeError):
    """No model that is configured can be offered."""


class NoEngineError(NodeError):
    """The engine that this model needs is not here, or has no GPU."""


class NoRoomForModelError(NodeError):
    """A model does not fit beside the others into the memory of any GPU."""


class ModelNotLoadedError(NodeError):
    """A model could not be loaded on demand."""


class GpuError(NodeError):
    """A GPU is here and cannot be used; the message is the driver's reason and what to do."""


class OutboxError(NodeError):
    """The receipts on disk cannot be read or written."""


class OutboxFullError(OutboxError):
    """No room for another receipt: the disk or the outbox's own bound is full."""


class BenchmarkError(NodeError):
    """A model did not get through the start-up benchmark, so its speed cannot be offered."""


class SetupError(NodeError):
    """What a node needs could not be installed."""
