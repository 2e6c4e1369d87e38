"""A stored file as a response: piece by piece, or a part of it (RFC 9110 §14)."""

import asyncio
import re

from coordinator.gateway.errors import ApiError, Headers, Problem
from coordinator.gateway.http.responses import Send, header
from coordinator.gateway.market_side.filing import StoredContent

_RANGE = re.compile(r"bytes=(\d{1,18})?-(\d{1,18})?")
# One crossing into a thread for so many bytes.
_PIECE_BYTES = 256 * 1024


class ContentReply:
    """A `Reply`. Once it is made, `send_to` must run: it closes the file."""

    def __init__(self, content: StoredContent, filename: str, wanted: str | None) -> None:
        """`wanted` is the request's Range header. Raises ApiError (416)."""
        self._content = content
        self._filename = "".join(c for c in filename if c.isalnum() or c in "._- ") or "file"
        try:
            found = _read_range(wanted, content.size)
        except ApiError:
            content.close()
            raise
        self.status = 200 if found is None else 206
        self._start, self._end = found or (0, content.size)

    async def send_to(self, send: Send, more_headers: Headers) -> None:
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status,
                    "headers": [*self._headers(), *more_headers],
                }
            )
            position = self._start
            while position < self._end:
                piece = await asyncio.to_thread(self._read, position)
                position += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._content.close()

    def _headers(self) -> Headers:
        size = self._content.size
        part = () if self.status == 200 else (f"bytes {self._start}-{self._end - 1}/{size}",)
        return (
            header("content-type", "application/octet-stream"),
            header("content-length", self._end - self._start),
            header("content-disposition", f'attachment; filename="{self._filename}"'),
            header("accept-ranges", "bytes"),
            *(header("content-range", value) for value in part),
        )

    def _read(self, position: int) -> bytes:
        pieces = bytearray()
        until = min(self._end, position + _PIECE_BYTES)
        while position + len(pieces) < until:
            start = position + len(pieces)
            pieces += self._content.read(start, until - start)
        return bytes(pieces)


def _read_range(wanted: str | None, size: int) -> tuple[int, int] | None:
    """From where up to before where; None for all of it, also if the header is of another kind."""
    match = _RANGE.fullmatch(wanted) if wanted is not None else None
    if match is None or match.group(1) is None is match.group(2):
        return None
    if match.group(1) is None:
        start, end = max(0, size - int(match.group(2))), size
    else:
        start = int(match.group(1))
        end = size if match.group(2) is None else min(size, int(match.group(2)) + 1)
    if start >= end:
        problem = Problem(
            416,
            f"the file has {size} bytes",
            code="range_not_satisfiable",
            headers=(header("content-range", f"bytes */{size}"),),
        )
        raise ApiError(problem)
    return start, end
