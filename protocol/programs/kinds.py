"""The kinds of values that settings have: how text or TOML is read, what is allowed, how a value is
told to people. A reader raises ValueError with what was expected."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from protocol.limits import ADDRESS_CHARS_MAX, LIST_ITEMS_MAX, NAME_CHARS_MAX
from protocol.money import format_credits, parse_credits
from protocol.net.dial_policy import parse_networks

# Tokens of hubs have some 40 characters, those of companies' gateways up to a few hundred.
_SECRET_CHARS_MAX = 1_024

# Reads what TOML, the environment or a flag gives.
Reader = Callable[[Any], Any]


class KeyValueError(ValueError):
    """A table holds something wrong at these nested keys."""

    def __init__(self, message: str, keys: tuple[str, ...]) -> None:
        super().__init__(message)
        self.keys = keys


def _tell(value: Any) -> str:
    if isinstance(value, tuple | Mapping):
        return ", ".join(map(str, value))
    return str(value)


@dataclass(frozen=True, slots=True)
class ValueKind:
    """`values` says what is allowed. A list's flag is given once per item; a table has none, and
    neither has a secret: every user of the machine sees a command line."""

    read: Reader
    values: str
    tell: Callable[[Any], str] = _tell
    is_list: bool = False
    is_number: bool = False
    has_flag: bool = True
    is_secret: bool = False


def read_path(raw: Any) -> Path:
    if not isinstance(raw, str | Path) or not str(raw):
        raise ValueError("a path")
    return Path(raw).expanduser().absolute()


def read_text(raw: Any) -> str:
    if not isinstance(raw, str) or len(raw) > NAME_CHARS_MAX:
        raise ValueError(f"text of at most {NAME_CHARS_MAX} characters")
    return raw


def read_count(low: int, high: int) -> Reader:
    def read(raw: Any) -> int:
        # bool is an int in Python, but `queue_max = true` is a mistake.
        if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,18}", raw):
            raw = int(raw)
        if type(raw) is not int or not low <= raw <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return raw

    return read


def read_credits(raw: Any) -> int:
    """Nano-credits, from text or a TOML number (which arrives as its literal text)."""
    try:
        return parse_credits(str(raw))
    except ValueError:
        raise ValueError("an amount of credits such as 0.02") from None


def read_addresses(raw: Any) -> tuple[str, ...]:
    addresses = tuple(read_items(raw, ","))
    if not all(a.startswith("/") and len(a) <= ADDRESS_CHARS_MAX for a in addresses):
        raise ValueError("multiaddresses such as /ip4/0.0.0.0/tcp/4101")
    return addresses


def read_networks(raw: Any) -> tuple[str, ...]:
    networks = tuple(read_items(raw, ","))
    try:
        parse_networks(networks)
    except ValueError:
        raise ValueError("`loopback`, or networks such as 192.168.0.0/16") from None
    return networks


def read_switch(raw: Any) -> bool:
    """TOML's true and false, or the words of flags and the environment."""
    found = _SWITCH_WORDS.get(str(raw).lower())
    if found is None:
        raise ValueError("yes or no")
    return found


_SWITCH_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_secret(raw: Any) -> str:
    """One word, as tokens are; a file that it was copied from may end in a line break."""
    secret = raw.strip() if isinstance(raw, str) else ""
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ValueError("one word")
    if not 0 < len(secret) <= _SECRET_CHARS_MAX:
        raise ValueError(f"1 to {_SECRET_CHARS_MAX} characters")
    return secret


def read_url(raw: Any) -> str:
    """Without a name and a password in it, which logs and error messages would repeat."""
    expected = "the URL of a server such as https://hub.example"
    try:
        parts = urlsplit(raw)
        _ = parts.port
    except (ValueError, TypeError, AttributeError):
        raise ValueError(expected) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or len(raw) > ADDRESS_CHARS_MAX:
        raise ValueError(expected)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(expected)
    return str(raw).rstrip("/")


def read_items(raw: Any, separator: str) -> list[str]:
    """A list of texts, or one text with separators. Raises ValueError."""
    if isinstance(raw, str):
        raw = [item.strip() for item in raw.split(separator) if item.strip()]
    if not isinstance(raw, list | tuple) or not all(isinstance(item, str) for item in raw):
        raise ValueError("a list of texts")
    if len(raw) > LIST_ITEMS_MAX:
        raise ValueError(f"at most {LIST_ITEMS_MAX} items")
    return list(raw)


def count(low: int, high: int, unit: str = "") -> ValueKind:
    """A whole number from `low` to `high`; `unit` is for people."""
    values = f"{low} to {high:,}{f' {unit}' if unit else ''}"
    return ValueKind(read_count(low, high), values, is_number=True)


def choice(choices: type[StrEnum] | Sequence[str]) -> ValueKind:
    """One of some words, read as a member if they are an enum's."""
    words = [str(word) for word in choices]

    def read(raw: Any) -> str:
        if raw not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return choices(raw) if isinstance(choices, type) else str(raw)

    return ValueKind(read, ", ".join(words))


PATH = ValueKind(read_path, "a path")
# None unless the owner says something.
OPTIONAL_PATH = ValueKind(read_path, "a path", tell=lambda value: str(value or ""))
TEXT = ValueKind(read_text, "text")
URL = ValueKind(read_url, "a URL", has_flag=False)
SECRET = ValueKind(
    read_secret,
    "a secret",
    tell=lambda value: "set" if value else "",
    has_flag=False,
    is_secret=True,
)
SWITCH = ValueKind(read_switch, "yes or no", tell=lambda value: "yes" if value else "no")
CREDITS = ValueKind(read_credits, "credits", tell=format_credits)
OPTIONAL_CREDITS = ValueKind(
    read_credits, "credits", tell=lambda value: "" if value is None else format_credits(value)
)
ADDRESSES = ValueKind(read_addresses, "multiaddresses", is_list=True)
NETWORKS = ValueKind(read_networks, "loopback, or networks", is_list=True)
