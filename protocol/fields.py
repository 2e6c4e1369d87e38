"""Bounds that many messages put on single fields. Each check raises ValueError."""

from protocol.ids import is_digest
from protocol.limits import LIST_ITEMS_MAX, NAME_BYTES_MAX

# Milliseconds since 1970 until the year 2200: keeps every sum of two stamps far inside int64.
STAMP_MS_MAX = 7_258_118_400_000


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_names(names: tuple[str, ...], what: str) -> None:
    check(len(names) <= LIST_ITEMS_MAX, f"{what} lists too many items")
    sizes = [len(name.encode()) for name in names]
    check(
        all(0 < size <= NAME_BYTES_MAX for size in sizes),
        f"{what} needs names of 1 to {NAME_BYTES_MAX} bytes",
    )


def check_optional_digest(text: str | None, what: str) -> None:
    check(text is None or is_digest(text), f"{what} is not a sha256")


def check_stamps(*stamps_ms: int) -> None:
    check(all(0 <= stamp <= STAMP_MS_MAX for stamp in stamps_ms), "a time is out of range")
