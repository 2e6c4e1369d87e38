"""Reading a form with a file from a body that is already bounded and in memory.

The body is split at its boundary, at most once per part that we take, so that the cost is that of
one search over the bytes, whatever the form looks like (RFC 2046 §5.1, RFC 7578).
"""

from dataclasses import dataclass, field
from email.message import Message
from email.utils import collapse_rfc2231_value

from coordinator.gateway.errors import ApiError, invalid

# Our forms have four fields.
PARTS_MAX = 16
TEXT_BYTES_MAX = 64 * 1024
# A name, a file name and a content type.
PART_HEAD_BYTES_MAX = 4 * 1024
# RFC 2046 allows a boundary of 70 characters.
CONTENT_TYPE_CHARS_MAX = 256


@dataclass(slots=True)
class Form:
    """Fields without a file name, and files."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def read_form(body: bytes | bytearray, content_type: str) -> Form:
    """Raises ApiError (400)."""
    form = Form()
    for part in _split(bytes(body), b"--" + read_boundary(content_type)):
        head, found, data = part.partition(b"\r\n\r\n")
        if not found or len(head) > PART_HEAD_BYTES_MAX:
            raise bad_form("a part has no head, or one that is too long")
        _add(form, _read_head(head), data)
    return form


def read_boundary(content_type: str) -> bytes:
    """Raises ApiError (400)."""
    if len(content_type) > CONTENT_TYPE_CHARS_MAX:
        raise bad_form("its content type is too long")
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_boundary()
    if not boundary or not boundary.isascii():
        raise bad_form("its content type names no boundary")
    return boundary.encode()


def _split(body: bytes, delimiter: bytes) -> list[bytes]:
    """The parts between the delimiters. What stands before the first and after the last is not
    part of the form."""
    # The first delimiter may stand at the very beginning, the others begin a line.
    _, *parts = (b"\r\n" + body).split(b"\r\n" + delimiter, PARTS_MAX + 1)
    if not parts:
        raise bad_form("its boundary is nowhere in it")
    for number, part in enumerate(parts):
        if part.startswith(b"--"):
            return parts[:number]
        line, found, rest = part.partition(b"\r\n")
        if not found or line.strip(b" \t"):
            raise bad_form("a boundary is not alone on its line")
        # With its line break, so that a part without any header has an empty head.
        parts[number] = rest if not rest.startswith(b"\r\n") else b"\r\n\r\n" + rest[2:]
    if len(parts) > PARTS_MAX:
        raise bad_form(f"it has more than {PARTS_MAX} parts")
    raise bad_form("it ends before its last boundary")


def _read_head(head: bytes) -> Message:
    message = Message()
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if line and (not colon or not name.isascii() or not name.strip()):
            raise bad_form("a part's head is malformed")
        if name.lower() == "content-disposition":
            message["content-disposition"] = value.strip()
    return message


def read_part_head(head: bytes) -> tuple[str, str | None]:
    """The name of a part, and that of its file if it is one. Raises ApiError (400)."""
    return _names_of(_read_head(head))


def _names_of(head: Message) -> tuple[str, str | None]:
    name = head.get_param("name", header="content-disposition")
    if not isinstance(name, str) or not name:
        raise bad_form("a part has no name")
    filename = head.get_param("filename", header="content-disposition")
    return name, None if filename is None else collapse_rfc2231_value(filename)


def _add(form: Form, head: Message, data: bytes) -> None:
    name, filename = _names_of(head)
    if filename is not None:
        form.files[name] = data
        return
    if len(data) > TEXT_BYTES_MAX:
        raise bad_form(f"{name[:64]} is too long")
    try:
        form.texts[name] = data.decode()
    except UnicodeDecodeError:
        raise bad_form(f"{name[:64]} is not UTF-8") from None


def bad_form(why: str) -> ApiError:
    """400: the body is no form."""
    return invalid(f"the body is not a valid form: {why}", None, code="invalid_form")
