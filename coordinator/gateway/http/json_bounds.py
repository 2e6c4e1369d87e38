"""Bounds on a JSON text, checked before any object is built from it.

Twelve megabytes of `{},` become 290 MB of objects and hold the interpreter for most of a second.
The text is scanned in windows, so that other threads get their turn between two of them.
"""

import re

# Python holds its lock while it parses: so many values take about 20 ms.
VALUES_MAX = 100_000

# Bodies up to this size cannot hold more values than that, and parse in a few milliseconds.
SMALL_BYTES = 64 * 1024

_WINDOW_BYTES = 256 * 1024

_ESCAPES = re.compile(rb"\\.", re.DOTALL)
# What comes before a further value: in a list, in an object, or inside a new one.
_SIGNS = (b",", b"[", b"{")


def has_too_many_values(body: bytes | bytearray) -> bool:
    """Whether the text has more than VALUES_MAX values."""
    if len(body) <= SMALL_BYTES:
        return False
    # Most bodies are a few long strings; counting all signs at once is much cheaper.
    if _count_signs(body) <= VALUES_MAX:
        return False
    return count_values(body, stop_at=VALUES_MAX + 1) > VALUES_MAX


def count_values(
    body: bytes | bytearray, *, stop_at: int | None = None, window_bytes: int = _WINDOW_BYTES
) -> int:
    """How many signs that a value begins stand outside of strings; about the number of values."""
    count, in_string, carry = 0, False, b""
    for start in range(0, len(body), window_bytes):
        window = carry + bytes(body[start : start + window_bytes])
        carry = b"\\" if _ends_in_escape(window) else b""
        plain = _ESCAPES.sub(b"", window.removesuffix(b"\\") if carry else window)
        parts = plain.split(b'"')
        count += _count_signs(b"".join(parts[1::2] if in_string else parts[::2]))
        in_string ^= len(parts) % 2 == 0
        if stop_at is not None and count >= stop_at:
            break
    return count


def _count_signs(text: bytes | bytearray) -> int:
    return sum(map(text.count, _SIGNS))


def _ends_in_escape(window: bytes) -> bool:
    """Whether the last backslash escapes a character of the next window."""
    return (len(window) - len(window.rstrip(b"\\"))) % 2 == 1
