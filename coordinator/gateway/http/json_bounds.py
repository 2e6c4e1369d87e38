"""Bounds on a JSON text, checked before any object is built from it.

Twelve megabytes of `{},` become 290 MB of objects and hold the interpreter for most of a second.
The text is scanned in windows, so that other threads get their turn between two of them.
"""

import re

import numpy as np

# Python holds its lock while it parses: so many values take about 20 ms.
VALUES_MAX = 100_000

# A full body of `\u4f60` has fewer; so many `\n` take about 40 ms to read.
ESCAPES_MAX = 2_500_000

# Bodies up to this size parse in a few milliseconds, whatever is in them.
_SMALL_BYTES = 64 * 1024
# So do larger ones of a few long strings, such as a chat about a document: a thread for one costs
# more than that while two others want the interpreter. Half a megabyte of text takes a millisecond.
_QUICK_BYTES = 512 * 1024
_QUICK_VALUES_MAX = 20_000

_WINDOW_BYTES = 32 * 1024

_ESCAPES = re.compile(rb"\\.", re.DOTALL)
# What comes before a further value: in a list, in an object, or inside a new one.
_SIGNS = (b",", b"[", b"{")


def is_quick(body: bytes | bytearray) -> bool:
    """Whether the text parses in a few milliseconds, so that other tasks may wait for it."""
    if len(body) <= _SMALL_BYTES:
        return True
    return len(body) <= _QUICK_BYTES and not _has_more(body, _SIGNS, _QUICK_VALUES_MAX)


def is_too_much(body: bytes | bytearray) -> bool:
    """Whether the text has more than VALUES_MAX values or ESCAPES_MAX escapes."""
    if len(body) <= _SMALL_BYTES:
        return False
    if len(body) > ESCAPES_MAX and _has_more(body, (b"\\",), ESCAPES_MAX):
        return True
    # Most bodies are a few long strings; counting all signs at once is much cheaper.
    if not _has_more(body, _SIGNS, VALUES_MAX):
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


def _has_more(body: bytes | bytearray, signs: tuple[bytes, ...], most: int) -> bool:
    """Whether so many signs are anywhere in the text. With numpy, which compares many bytes at
    once: `bytes.count` takes as long as the parser."""
    codes, count = np.frombuffer(body, np.uint8), 0
    for start in range(0, len(codes), _WINDOW_BYTES):
        window = codes[start : start + _WINDOW_BYTES]
        count += sum(int(np.count_nonzero(window == ord(sign))) for sign in signs)
        if count > most:
            return True
    return False


def _count_signs(text: bytes | bytearray) -> int:
    return sum(map(text.count, _SIGNS))


def _ends_in_escape(window: bytes) -> bool:
    """Whether the last backslash escapes a character of the next window."""
    return (len(window) - len(window.rstrip(b"\\"))) % 2 == 1
