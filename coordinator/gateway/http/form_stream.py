"""Reading a form whose file is too large for memory: piece by piece, as it arrives.

What is buffered is bounded: a part's head, a short text, and the bytes that may begin a boundary.
A body that fits into memory is read by `coordinator.gateway.http.multipart`.
"""

from dataclasses import dataclass

from coordinator.gateway.http.multipart import (
    PART_HEAD_BYTES_MAX,
    PARTS_MAX,
    TEXT_BYTES_MAX,
    bad_form,
    read_boundary,
    read_part_head,
)


@dataclass(frozen=True, slots=True)
class FilePart:
    """A piece of the file called `name`; the first one may be empty."""

    name: str
    filename: str
    data: bytes


class FormStream:
    """`feed` what arrives and take the pieces of files; `texts` has the other fields. Call
    `finish` at the end."""

    def __init__(self, content_type: str) -> None:
        """Raises ApiError (400)."""
        self.texts: dict[str, str] = {}
        self._delimiter = b"\r\n--" + read_boundary(content_type)
        # The first delimiter may stand at the very beginning.
        self._buffer = bytearray(b"\r\n")
        self._parts = 0
        self._is_in_part = False
        self._is_over = False
        self._name = ""
        self._filename: str | None = None
        self._text = bytearray()

    def feed(self, data: bytes) -> list[FilePart]:
        """Raises ApiError (400)."""
        self._buffer += data
        found: list[FilePart] = []
        while not self._is_over and self._step(found):
            pass
        if self._is_over:
            self._buffer.clear()
        return found

    def finish(self) -> None:
        """Raises ApiError (400) if the form is not whole."""
        if not self._is_over:
            raise bad_form("it ends before its last boundary")

    def _step(self, found: list[FilePart]) -> bool:
        """Whether something was read and more may follow."""
        return self._read_data(found) if self._is_in_part else self._read_head(found)

    def _read_data(self, found: list[FilePart]) -> bool:
        end = self._buffer.find(self._delimiter)
        # The last bytes may be the beginning of a delimiter.
        size = end if end >= 0 else len(self._buffer) - len(self._delimiter) + 1
        if size > 0:
            self._take(bytes(self._buffer[:size]), found)
            del self._buffer[:size]
        if end < 0:
            return False
        self._end_part()
        return True

    def _read_head(self, found: list[FilePart]) -> bool:
        """The delimiter, the rest of its line, and the head of the part behind it."""
        start = self._buffer.find(self._delimiter)
        if start < 0:
            # What stands before the first delimiter is not part of the form.
            del self._buffer[: max(0, len(self._buffer) - len(self._delimiter) + 1)]
            return False
        rest = bytes(self._buffer[start + len(self._delimiter) :][: 2 + PART_HEAD_BYTES_MAX + 8])
        if rest.startswith(b"--"):
            self._is_over = True
            return False
        line, has_line, _ = rest.partition(b"\r\n")
        end = rest.find(b"\r\n\r\n", len(line))
        if has_line and line.strip(b" \t"):
            raise bad_form("a boundary is not alone on its line")
        if end < 0:
            if len(rest) > PART_HEAD_BYTES_MAX:
                raise bad_form("a part has no head, or one that is too long")
            return False
        self._begin_part(rest[len(line) + 2 : end] if end > len(line) else b"")
        del self._buffer[: start + len(self._delimiter) + end + 4]
        if self._filename is not None:
            found.append(FilePart(self._name, self._filename, b""))
        return True

    def _begin_part(self, head: bytes) -> None:
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise bad_form(f"it has more than {PARTS_MAX} parts")
        self._name, self._filename = read_part_head(head)
        self._is_in_part = True
        self._text.clear()

    def _take(self, data: bytes, found: list[FilePart]) -> None:
        if self._filename is not None:
            found.append(FilePart(self._name, self._filename, data))
            return
        self._text += data
        if len(self._text) > TEXT_BYTES_MAX:
            raise bad_form(f"{self._name[:64]} is too long")

    def _end_part(self) -> None:
        self._is_in_part = False
        if self._filename is not None:
            return
        try:
            self.texts[self._name] = self._text.decode()
        except UnicodeDecodeError:
            raise bad_form(f"{self._name[:64]} is not UTF-8") from None
