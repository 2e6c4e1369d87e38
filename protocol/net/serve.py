"""The boundary around code that serves one stream, one channel or one message.

An exception that leaves a stream handler stops py-libp2p's whole host and leaves a listener that
accepts and never answers; one malformed message must not do that. So the only broad `except` of the
network is here: log, drop that one conversation, count it, go on. Cancellation passes.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import structlog
import trio

from protocol.errors import RemoteProtocolError, leaves
from protocol.ids import PeerId
from protocol.net.errors import ConnectFailed, NetError, StreamClosed
from protocol.net.transport import Handler, Stream, Validator

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Ending a stream is one small frame; longer means that its connection is stuck, and on its way out.
CLOSE_WITHIN_S = 1.0

# What a peer or the network does to us every day: worth a line, not a traceback.
ORDINARY = (NetError, RemoteProtocolError)


class Boundary(Generic[T]):
    """Runs `serve` and keeps what it raises. `failures` counts it, unless the peer just left."""

    def __init__(self, serve: Callable[[T], Awaitable[None]], name: str) -> None:
        self._serve = serve
        self._name = name
        self.failures = 0

    async def run(self, subject: T) -> Exception | None:
        """The error that ended the serving, or None if it returned."""
        try:
            await self._serve(subject)
        except Exception as error:
            # The boundary of one conversation: the host and all others outlive it.
            self._report(error)
            return error
        except BaseExceptionGroup as group:
            # A nursery that failed while it was being cancelled raises both at once. The failure is
            # ours to report; the cancellation must go on, or its scope would never close.
            failed, passing = group.split(Exception)
            if failed is not None:
                self._report(failed)
            if passing is not None:
                raise passing from None
            return failed
        return None

    def _report(self, error: Exception) -> None:
        causes = leaves(error)
        if all(isinstance(cause, StreamClosed) for cause in causes):
            # The other side went away: how most conversations end.
            log.debug("conversation_ended", handler=self._name, error=describe(error))
            return
        self.failures += 1
        if all(isinstance(cause, ORDINARY) for cause in causes):
            log.info("conversation_failed", handler=self._name, error=describe(error))
        else:
            log.error("handler_crashed", handler=self._name, exc_info=error)


def boundary(handler: Handler, name: str) -> Boundary[Stream]:
    """A stream handler that ends its stream, whatever happens: closed when it returned, reset when
    it raised or was cancelled."""

    async def serve(stream: Stream) -> None:
        finished = False
        try:
            await handler(stream)
            finished = True
        finally:
            # A peer must not learn of our failure from an end of stream that looks in order.
            with trio.move_on_after(CLOSE_WITHIN_S) as scope:
                scope.shield = True
                await (stream.aclose() if finished else stream.reset())

    return Boundary(serve, name)


def guarded(validate: Validator, name: str) -> Validator:
    """A validator that refuses what makes it raise: any peer can send gossip."""

    def validate_safely(data: bytes, via: PeerId) -> bool:
        try:
            return validate(data, via)
        except RemoteProtocolError:
            return False
        except Exception as error:
            # The boundary of one message.
            log.error("validator_crashed", topic=name, exc_info=error)
            return False

    return validate_safely


@contextmanager
def opening(what: str) -> Iterator[None]:
    """Around the library's code that opens a connection or a stream to a peer: whatever the peer's
    bytes make it raise is a ConnectFailed, which says `what` went wrong. NetErrors pass."""
    try:
        yield
    except NetError:
        raise
    except Exception as error:
        # The boundary of one opening. The library lets errors of its decoders through.
        raise ConnectFailed(f"{what}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """One line for a log: the type and message of every cause."""
    return "; ".join(f"{type(leaf).__name__}: {leaf}" for leaf in leaves(error))
