"""One question, one answer: REQUEST and REPLY or ERROR on a channel of their own.

Bodies are dataclasses of `protocol.services`; the channel's peer is who asks. An error travels with
its code, so that the caller raises what the other side raised.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from protocol.codec import decode, encode
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.ids import PeerId
from protocol.limits import NAME_CHARS_MAX
from protocol.net.channels import Channel
from protocol.net.errors import NetTimeout
from protocol.net.pool import StreamPool

A = TypeVar("A")
R = TypeVar("R")

# An answer needs a decision and a durable write, never more: a service that works longer streams
# events.
SERVE_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class RequestBody:
    """REQUEST: `body` is the encoded message that the method takes."""

    method: str
    body: bytes

    def __post_init__(self) -> None:
        if len(self.method) > NAME_CHARS_MAX:
            raise ValueError("the method's name is too long")


class RpcClient:
    """Asks peers over a pool's streams."""

    def __init__(self, pool: StreamPool) -> None:
        self.pool = pool

    async def call(
        self,
        peer: PeerId,
        method: str,
        ask: Any,
        reply: type[R],
        *,
        timeout_s: float,
        addresses: Sequence[str] = (),
    ) -> R:
        """Raises RemoteProtocolError (what the peer answered, or that its answer is malformed),
        NetTimeout (it may have happened or not), NetError."""
        with trio.move_on_after(timeout_s):
            channel = await self.pool.open_channel(peer, addresses=addresses, timeout_s=timeout_s)
            try:
                return await ask_once(channel, method, ask, reply)
            finally:
                channel.close()
        raise NetTimeout(f"{peer} did not answer {method!r} within {timeout_s:g} s")


async def ask_once(channel: Channel, method: str, ask: Any, reply: type[R]) -> R:
    """One question on an open channel. No deadline of its own; raises as `RpcClient.call`."""
    channel.send_nowait(FrameType.REQUEST, encode(RequestBody(method, encode(ask))))
    frame = await channel.receive()
    if frame.type is not FrameType.REPLY:
        raise RemoteProtocolError(
            f"{frame.type.name} is no answer to {method!r}", code=Code.UNEXPECTED_FRAME
        )
    return decode(reply, frame.body)


def admit_all(peer: PeerId) -> None:
    """For services whose askers need no rate."""


class RpcServer:
    """Answers peers; `serve_channel` goes to `serve_channels`. What a method raises as
    RemoteProtocolError reaches the asker; anything else is logged and answered as internal.

    `admit` may refuse a peer (RemoteProtocolError) before anything of its question is decoded.
    """

    def __init__(
        self,
        *,
        admit: Callable[[PeerId], None] = admit_all,
        serve_within_s: float = SERVE_WITHIN_S,
    ) -> None:
        self._admit = admit
        self._serve_within_s = serve_within_s
        self._methods: dict[str, tuple[type[Any], Callable[[PeerId, Any], Awaitable[Any]]]] = {}

    def register(
        self, method: str, ask: type[A], answer: Callable[[PeerId, A], Awaitable[Any]]
    ) -> None:
        """`answer` gets who asks and the decoded message, and returns the reply."""
        assert method not in self._methods, f"{method} is registered twice"
        self._methods[method] = (ask, answer)

    async def serve_channel(self, channel: Channel) -> None:
        """Answer one question; the channel ends with it. Raises RemoteProtocolError, NetTimeout."""
        with trio.move_on_after(self._serve_within_s):
            frame = await channel.receive()
            if frame.type is not FrameType.REQUEST:
                raise RemoteProtocolError(
                    f"expected REQUEST, not {frame.type.name}", code=Code.UNEXPECTED_FRAME
                )
            self._admit(channel.peer)
            request = decode(RequestBody, frame.body)
            found = self._methods.get(request.method)
            if found is None:
                raise RemoteProtocolError(
                    f"there is no method {request.method!r}", code=Code.NOT_FOUND
                )
            ask, answer = found
            reply = await answer(channel.peer, decode(ask, request.body))
            channel.send_nowait(FrameType.REPLY, encode(reply))
            return
        raise NetTimeout(f"no answer within {self._serve_within_s:g} s")
