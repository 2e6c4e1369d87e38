"""Frozen dataclasses to and from msgpack maps, strictly.

The schema is the dataclass: str, int, float, bool, bytes, enums, optionals, homogeneous tuples and
nested dataclasses. Decoding checks every type, refuses missing fields, fields that come twice and
trailing bytes, and bounds what it allocates by the size of its input and by CONTAINERS_MAX.
Encoding writes fields in declaration order and leaves out those that are None, and `added` fields
that have their default.

A later version may say more than this one knows, and that must not spoil what this one does know:
an unknown field is ignored, a word of an `OpenVocabulary` is passed on, and an item of a list of
messages that holds an unknown word of any other choice is left out of the list.
"""

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

import msgpack

from protocol.errors import Code, RemoteProtocolError
from protocol.limits import CONTAINERS_MAX
from protocol.vocabulary import OpenVocabulary

T = TypeVar("T")

_INT64_MAX = 2**63 - 1
_INT64_MIN = -(2**63)

_ADDED = "added"

_Reader = Callable[[Any], Any]
_Writer = Callable[[Any], Any]


class _Mismatch(Exception):
    """A value does not have its field's type; becomes a MALFORMED error with the field's name."""


class _UnknownWord(_Mismatch):
    """A choice has a word that this version does not know. Spoils the innermost item of a list."""


def added(default: Any) -> Any:
    """A field of a dataclass that came after its message was in use. It is written only where it
    differs from its default: peers that do not know it then see what they always saw, and what they
    compare field by field stays equal."""
    return dataclasses.field(default=default, metadata={_ADDED: True})


def encode(message: Any) -> bytes:
    """The wire bytes of a dataclass."""
    data: bytes = msgpack.packb(_to_plain(message), use_bin_type=True)
    return data


def decode(cls: type[T], data: bytes | memoryview) -> T:
    """Read one `cls` that fills `data` exactly.

    Raises RemoteProtocolError: TRUNCATED, TRAILING_BYTES or MALFORMED. A `ValueError` from the
    class's own `__post_init__` (a bound that it states) becomes MALFORMED too.
    """
    try:
        message: T = _reader_for(cls)(_unpack(data))
    except _Mismatch as mismatch:
        raise RemoteProtocolError(f"{cls.__name__}: {mismatch}", code=Code.MALFORMED) from None
    return message


def _unpack(data: bytes | memoryview) -> Any:
    size = len(data)
    # No message has more containers than bytes: most are too short to need counting.
    counter = _Containers() if size > CONTAINERS_MAX else None
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=size,
            max_ext_len=0,
            object_pairs_hook=_unique if counter is None else counter.read_map,
            list_hook=None if counter is None else counter.read_list,
        )
    except msgpack.ExtraData:
        raise RemoteProtocolError("bytes follow the message", code=Code.TRAILING_BYTES) from None
    except (msgpack.UnpackException, ValueError, RecursionError) as error:
        # msgpack says "incomplete input" in a ValueError; both mean that bytes are missing.
        truncated = isinstance(error, msgpack.OutOfData) or "incomplete" in str(error)
        code = Code.TRUNCATED if truncated else Code.MALFORMED
        raise RemoteProtocolError("not a complete msgpack value", code=code) from None


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A map whose keys all differ: bytes that are signed must mean one thing to every reader."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _Mismatch("a field comes twice")
    return fields


class _Containers:
    """Stops the reading of a message with too many maps and lists, whatever field they are in."""

    def __init__(self) -> None:
        self._left = CONTAINERS_MAX

    def read_map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._take()
        return _unique(pairs)

    def read_list(self, items: list[Any]) -> list[Any]:
        self._take()
        return items

    def _take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _Mismatch("too many maps and lists")


# What needs no conversion: most of what travels, so it is looked for first.
_PLAIN = frozenset({str, int, float, bool, bytes})


def _to_plain(value: Any) -> Any:
    kind: Any = type(value)
    return value if kind in _PLAIN else _writer_for(kind)(value)


@cache
def _writer_for(kind: Any) -> _Writer:
    """How values of one type become plain. Made once: a job encodes eight messages, and to find out
    anew what each field is took a twentieth of the coordinator's calls."""
    if dataclasses.is_dataclass(kind):
        return _write_dataclass(kind)
    if issubclass(kind, tuple):
        return _write_items
    if issubclass(kind, enum.Enum):
        return attrgetter("value")
    return _write_as_it_is


def _write_dataclass(cls: Any) -> _Writer:
    fields = tuple(
        (field.name, field.default if field.metadata.get(_ADDED) else None)
        for field in dataclasses.fields(cls)
    )

    def write_fields(message: Any) -> dict[str, Any]:
        plain = {}
        for name, unwritten in fields:
            item = getattr(message, name)
            if item is not None and (unwritten is None or item != unwritten):
                kind: Any = type(item)
                plain[name] = item if kind in _PLAIN else _writer_for(kind)(item)
        return plain

    return write_fields


def _write_items(items: tuple[Any, ...]) -> tuple[Any, ...] | list[Any]:
    # Items of one tuple have one type: token ids and most names travel as they are.
    if not items or type(items[0]) in _PLAIN:
        return items
    return [_to_plain(item) for item in items]


def _write_as_it_is(value: Any) -> Any:
    return value


def _reader_for(annotation: Any) -> _Reader:
    return _READERS.get(annotation) or _READERS.setdefault(annotation, _compile(annotation))


def _compile(annotation: Any) -> _Reader:
    """Compile an annotation to a function that checks and converts one plain value."""
    origin = typing.get_origin(annotation)
    if isinstance(annotation, typing.NewType):
        return _reader_for(annotation.__supertype__)
    if origin in (typing.Union, types.UnionType):
        return _read_optional(annotation)
    if origin is tuple:
        return _read_tuple(typing.get_args(annotation)[0])
    if dataclasses.is_dataclass(annotation):
        return _read_dataclass(annotation)
    if isinstance(annotation, type) and issubclass(annotation, OpenVocabulary):
        return _read_word(annotation)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _read_enum(annotation)
    raise TypeError(f"{annotation!r} cannot travel: use the types that the codec knows")


def _read_str(value: Any) -> str:
    if type(value) is not str:
        raise _Mismatch("expected text")
    return value


def _read_bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise _Mismatch("expected bytes")
    return value


def _read_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _Mismatch("expected true or false")
    return value


def _read_int(value: Any) -> int:
    if type(value) is not int or not _INT64_MIN <= value <= _INT64_MAX:
        raise _Mismatch("expected a 64-bit integer")
    return value


def _read_float(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _Mismatch("expected a finite number")
    return float(value)


_READERS: dict[Any, _Reader] = {
    str: _read_str,
    bytes: _read_bytes,
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
}


def _read_optional(annotation: Any) -> _Reader:
    (inner,) = (arg for arg in typing.get_args(annotation) if arg is not type(None))
    read = _reader_for(inner)
    return lambda value: None if value is None else read(value)


def _read_tuple(annotation: Any) -> _Reader:
    read = _reader_for(annotation)
    read_all = _read_open_items if dataclasses.is_dataclass(annotation) else _read_items

    def read_list(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _Mismatch("expected a list")
        return read_all(read, value)

    return read_list


def _read_items(read: _Reader, items: list[Any]) -> tuple[Any, ...]:
    return tuple(map(read, items))


def _read_open_items(read: _Reader, items: list[Any]) -> tuple[Any, ...]:
    """The messages of a list without those that only a later version understands."""
    known = []
    for item in items:
        try:
            known.append(read(item))
        except _UnknownWord:
            continue
    return tuple(known)


def _read_word(cls: type[OpenVocabulary]) -> _Reader:
    def read_word(value: Any) -> OpenVocabulary:
        try:
            return cls(value)
        except ValueError:
            raise _Mismatch(f"not a word that a {cls.__name__} can be") from None

    return read_word


def _read_enum(cls: type[enum.Enum]) -> _Reader:
    members = {member.value: member for member in cls}

    def read_member(value: Any) -> enum.Enum:
        if not isinstance(value, str | int):
            raise _Mismatch(f"not a {cls.__name__}")
        member = members.get(value)
        if member is None:
            raise _UnknownWord(f"not a {cls.__name__} that this version knows")
        return member

    return read_member


def _read_dataclass(cls: Any) -> _Reader:
    hints = typing.get_type_hints(cls)
    fields = [(field.name, _reader_for(hints[field.name])) for field in dataclasses.fields(cls)]
    optional = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING
        or field.default_factory is not dataclasses.MISSING
    }

    # Encoding leaves out what is None, so an absent nullable without a default is None.
    nullable = {name for name, _ in fields if type(None) in typing.get_args(hints[name])} - optional
    # Where a peer writes what it does not have as nil.
    unsaid = {field.name for field in dataclasses.fields(cls) if field.metadata.get(_ADDED)}

    def read_fields(value: Any) -> Any:
        if type(value) is not dict:
            raise _Mismatch("expected a map")
        arguments = {}
        for name, read in fields:
            if name in unsaid and value.get(name) is None:
                continue
            if name in value:
                try:
                    arguments[name] = read(value[name])
                except _Mismatch as mismatch:
                    raise type(mismatch)(f"{name}: {mismatch}") from None
            elif name in nullable:
                arguments[name] = None
            elif name not in optional:
                raise _Mismatch(f"{name} is missing")
        try:
            return cls(**arguments)
        except ValueError as error:
            raise _Mismatch(str(error)) from None

    return read_fields
