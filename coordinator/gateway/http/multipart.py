"""Reading a form with a file from a body that is already bounded and in memory."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from coordinator.gateway.errors import ApiError, invalid

if TYPE_CHECKING:
    # The package defines this name for type checkers only.
    from python_multipart.multipart import MultipartCallbacks

# Our forms have four fields; a part costs headers and callbacks.
PARTS_MAX = 16
TEXT_BYTES_MAX = 64 * 1024


@dataclass(slots=True)
class Form:
    """Fields without a file name, and files."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def read_form(body: bytes, content_type: str) -> Form:
    """Raises ApiError (400)."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise _bad_form("its content type names no boundary")
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise _bad_form(str(error)) from None
    if not collector.has_ended:
        raise _bad_form("it ends before its last boundary")
    return collector.form


class _Collector:
    """Puts the parser's pieces together."""

    def __init__(self) -> None:
        self.form = Form()
        self.has_ended = False
        self._parts = 0
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._data = bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise _bad_form(f"it has more than {PARTS_MAX} parts")
        self._disposition = b""
        self._data = bytearray()

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise _bad_form("a part has no name")
        if b"filename" in options:
            self.form.files[name] = bytes(self._data)
            return
        if len(self._data) > TEXT_BYTES_MAX:
            raise _bad_form(f"{name} is too long")
        try:
            self.form.texts[name] = self._data.decode()
        except UnicodeDecodeError:
            raise _bad_form(f"{name} is not UTF-8") from None

    def _finish(self) -> None:
        self.has_ended = True


def _bad_form(why: str) -> ApiError:
    return invalid(f"the body is not a valid form: {why}", None, code="invalid_form")
