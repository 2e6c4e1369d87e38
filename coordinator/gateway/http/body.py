"""Reading a request's body: within its size, at a minimum rate, and within its account's share."""

import asyncio
from collections.abc import AsyncIterator

from coordinator.gateway.errors import ApiError, Problem, error_of
from coordinator.gateway.http.fair_places import Place
from coordinator.gateway.http.responses import Receive
from coordinator.gateway.http.unpacking import Unpacker
from protocol.errors import Code

# A phone on a bad line has sent its first bytes by then.
GRACE_S = 10.0
# Slower than any line that a photograph is sent over.
BYTES_PER_S_MIN = 16 * 1024

# Close the connection after these, or the client would send all of its body for nothing.
CLOSE = ((b"connection", b"close"),)


class ClientGone(Exception):
    """The client hung up before its request was complete."""


async def read_body(
    receive: Receive,
    place: Place,
    *,
    announced: int,
    bytes_max: int,
    within_s: float,
    unpacker: Unpacker | None = None,
) -> bytearray:
    """All of it. Raises ApiError (400, 408, 413, 429) and ClientGone.

    `announced` is the content length, or 0. The bytes are held in `place` as they arrive, unpacked
    ones as well: `bytes_max` is for what is held.
    """
    if announced > bytes_max:
        raise _too_large(bytes_max)
    task = asyncio.current_task()
    assert task is not None
    was_evicted = False

    def evict() -> None:
        nonlocal was_evicted
        was_evicted = True
        task.cancel()

    place.begin_reading(evict)
    try:
        return await _collect(
            receive, place, bytes_max=bytes_max, within_s=within_s, unpacker=unpacker
        )
    except TimeoutError:
        raise _too_slow("the body arrived too slowly") from None
    except asyncio.CancelledError:
        if not was_evicted:
            raise
        task.uncancel()
        raise _too_slow("the body came slowly, and other requests needed its place") from None
    finally:
        place.end_reading()


async def read_pieces(receive: Receive, *, announced: int, bytes_max: int) -> AsyncIterator[bytes]:
    """A body too large for memory, as it arrives. Raises ApiError (408, 413) and ClientGone."""
    if announced > bytes_max:
        raise _too_large(bytes_max)
    loop = asyncio.get_running_loop()
    started_at, size, is_last = loop.time(), 0, False
    while not is_last:
        try:
            async with asyncio.timeout_at(started_at + GRACE_S + size / BYTES_PER_S_MIN):
                message = await receive()
        except TimeoutError:
            raise _too_slow("the body arrived too slowly") from None
        if message["type"] != "http.request":
            raise ClientGone
        piece, is_last = message.get("body", b""), not message.get("more_body", False)
        size += len(piece)
        if size > bytes_max:
            raise _too_large(bytes_max)
        yield piece


async def _collect(
    receive: Receive,
    place: Place,
    *,
    bytes_max: int,
    within_s: float,
    unpacker: Unpacker | None,
) -> bytearray:
    # One buffer: a list of pieces of one byte each would cost forty times as much.
    body = bytearray()
    received = 0
    loop = asyncio.get_running_loop()
    started_at = loop.time()

    def hold(piece: bytes) -> None:
        if len(body) + len(piece) > bytes_max:
            raise _too_large(bytes_max)
        place.grow(len(piece))
        body.extend(piece)

    async with asyncio.timeout(min(GRACE_S, within_s)) as limit:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            part = message.get("body", b"")
            received += len(part)
            if unpacker is None:
                hold(part)
            else:
                for piece in unpacker.unpack(part):
                    hold(piece)
                    # Between two pieces others get their turn, and the deadline its effect.
                    await asyncio.sleep(0)
            if not message.get("more_body", False):
                if unpacker is not None:
                    unpacker.check_end()
                return body
            if part:
                place.note_progress()
                allowed_s = min(GRACE_S + received / BYTES_PER_S_MIN, within_s)
                limit.reschedule(started_at + allowed_s)


def _too_slow(message: str) -> ApiError:
    return ApiError(Problem(408, message, code="request_timeout", should_retry=True, headers=CLOSE))


def _too_large(bytes_max: int) -> ApiError:
    error = error_of(Code.INPUT_TOO_LARGE, f"the body has more than {bytes_max} bytes")
    return error.but(headers=CLOSE)
