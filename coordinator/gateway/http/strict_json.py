"""Reading a JSON body as strictly as a signed message: what is not plainly right is refused.

Python's own parser is lax where it matters: it takes NaN and Infinity, keeps lone surrogates that
no UTF-8 can carry, drops all but the last of several fields of one name, and follows any nesting
until its stack ends.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVar

from coordinator.gateway.errors import ApiError, error_of, invalid
from coordinator.gateway.http.json_bounds import VALUES_MAX, is_too_much
from protocol.errors import Code

T = TypeVar("T")

# Hears of every field that is read: its path, what it may be as a JSON schema, whether it must be
# given. Set only while `coordinator.gateway.http.openapi` asks readers what they read.
Listener = Callable[[str, "Json", bool], None]
_listener: ContextVar[Listener | None] = ContextVar("_listener", default=None)

# No request of any API that we serve nests deeper than ten.
DEPTH_MAX = 32

Json = dict[str, Any]


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# An escape of half of a surrogate pair begins so.
_HALF_ESCAPES = (b"\\ud", b"\\uD")


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Tell of every field that is read within this block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def parse_object(body: bytes | bytearray) -> Json:
    """Raises ApiError (400, 413) unless the body is one JSON object of a bounded size."""
    if is_too_much(body):
        raise error_of(
            Code.INPUT_TOO_LARGE, f"the body has more than {VALUES_MAX} values, or too many escapes"
        )
    try:
        # RFC 8259 §8.1 lets a reader ignore a byte order mark.
        text = body.removeprefix(_BYTE_ORDER_MARK).decode()
        value = json.loads(
            text, parse_constant=_refuse_constant, object_pairs_hook=_object_of_pairs
        )
    except UnicodeDecodeError:
        raise _bad_json("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        # Of a second byte order mark Python says how it is decoded.
        reason = error.msg.partition(" (")[0].removesuffix(" at")
        raise _bad_json(f"{reason} at character {error.pos}") from None
    except RecursionError:
        raise _bad_json("it nests too deeply") from None
    except ValueError:
        raise _bad_json("a number is too long") from None
    if not isinstance(value, dict):
        raise _bad_json("it is not an object")
    _check_depth(value)
    if any(sign in body for sign in _HALF_ESCAPES):
        _check_texts(value, "")
    return value


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> Json:
    """Readers differ in which of two equal names counts, so a proxy may have checked the other."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in values if names.count(name) > 1)
        shown = twice[:64].encode(errors="replace").decode()
        raise _bad_json(f"an object has the field {shown!r} twice")
    return values


def _check_texts(value: Any, path: str) -> None:
    """Names and texts that no UTF-8 can carry would fail where they are stored or repeated."""
    if isinstance(value, str):
        check_text(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_texts(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            inner = f"{path}.{name}" if path else name
            check_text(name, inner.encode(errors="replace").decode())
            _check_texts(item, inner)


def _bad_json(why: str) -> ApiError:
    return invalid(f"the body is not valid JSON: {why}", None, code="invalid_json")


def _refuse_constant(name: str) -> NoReturn:
    raise _bad_json(f"{name} is not a number in JSON")


def _check_depth(value: Json) -> None:
    level: list[Any] = [value]
    for _ in range(DEPTH_MAX):
        level = [
            item
            for container in level
            for item in (container.values() if type(container) is dict else container)
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return
    raise _bad_json("it nests too deeply")


class Fields:
    """The fields of one JSON object. `path` names the object in messages, for example `provider`.

    Null stands for absent, as in OpenAI's clients. Unknown fields are ignored: a newer client may
    say more than we know.
    """

    __slots__ = ("_path", "_values")

    def __init__(self, values: Json, path: str = "") -> None:
        self._values = values
        self._path = path

    def path(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def raw(self, name: str) -> Any:
        """The value as parsed; None if absent."""
        if (tell := _listener.get()) is not None:
            tell(self.path(name), {}, False)
        return self._values.get(name)

    def with_value(self, name: str, value: Any) -> "Fields":
        """The same fields with one of them replaced."""
        return Fields({**self._values, name: value}, self._path)

    def unknown(self, known: Collection[str]) -> list[str]:
        """The names that are not among `known`, without those that are null. Where `known` maps
        names to sentences about them, these go into the description of the API."""
        if isinstance(known, Mapping) and (tell := _listener.get()) is not None:
            for name, words in known.items():
                tell(self.path(name), {"description": words}, False)
        return [
            name[:128]
            for name, value in self._values.items()
            if name not in known and value is not None
        ]

    def required(self, name: str) -> Any:
        if (tell := _listener.get()) is not None:
            tell(self.path(name), {}, True)
        value = self._values.get(name)
        if value is None:
            raise invalid(
                f"you must give {self.path(name)}",
                self.path(name),
                code="missing_required_parameter",
            )
        return value

    def text(self, name: str, *, chars_max: int) -> str:
        """A required, non-empty text."""
        if (tell := _listener.get()) is not None:
            tell(self.path(name), _text_schema(chars_max), False)
        value = check_text(self.required(name), self.path(name))
        if not 0 < len(value) <= chars_max:
            raise invalid(f"{self.path(name)} has 1 to {chars_max} characters", self.path(name))
        return value

    def flag(self, name: str) -> bool | None:
        if (tell := _listener.get()) is not None:
            tell(self.path(name), {"type": "boolean"}, False)
        value = self._values.get(name)
        if value is not None and type(value) is not bool:
            raise _wrong_type(self.path(name), "true or false")
        return value

    def integer(self, name: str, *, low: int, high: int) -> int | None:
        if (tell := _listener.get()) is not None:
            tell(self.path(name), {"type": "integer", "minimum": low, "maximum": high}, False)
        value = self._values.get(name)
        if value is None:
            return None
        # 1.0 is an integer in JSON, and some clients have only one kind of number.
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise _wrong_type(self.path(name), "an integer")
        if not low <= value <= high:
            raise invalid(f"{self.path(name)} lies between {low} and {high}", self.path(name))
        return value

    def number(self, name: str, *, low: float, high: float) -> float | None:
        if (tell := _listener.get()) is not None:
            tell(self.path(name), {"type": "number", "minimum": low, "maximum": high}, False)
        value = self._values.get(name)
        if value is None:
            return None
        if type(value) not in (int, float):
            raise _wrong_type(self.path(name), "a number")
        # The bounds also keep out 1e999, which parses to infinity, and integers beyond any float.
        if not low <= value <= high or not math.isfinite(value):
            raise invalid(f"{self.path(name)} lies between {low} and {high}", self.path(name))
        return float(value)

    def choice(self, name: str, choices: Mapping[str, T]) -> T | None:
        if (tell := _listener.get()) is not None:
            tell(self.path(name), {"type": "string", "enum": list(choices)}, False)
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or value not in choices:
            raise invalid(f"{self.path(name)} is one of {', '.join(choices)}", self.path(name))
        return choices[value]

    def texts(self, name: str, *, items_max: int, chars_max: int) -> tuple[str, ...]:
        """A list of texts, or one text; empty if absent."""
        if (tell := _listener.get()) is not None:
            tell(self.path(name), _text_schema(chars_max), False)
            tell(
                self.path(name), _list_schema(items_max) | {"items": _text_schema(chars_max)}, False
            )
        value = self._values.get(name)
        if value is None:
            return ()
        items = [value] if isinstance(value, str) else value
        return read_list(items, self.path(name), items_max=items_max, read=_text_reader(chars_max))

    def fields(self, name: str) -> "Fields | None":
        """A nested object."""
        if (tell := _listener.get()) is not None:
            tell(self.path(name), {"type": "object"}, False)
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise _wrong_type(self.path(name), "an object")
        return Fields(value, self.path(name))


def read_list(
    value: Any, path: str, *, items_max: int, read: Callable[[Any, str], T]
) -> tuple[T, ...]:
    """Every item of a list, read with its own path."""
    if (tell := _listener.get()) is not None:
        tell(path, _list_schema(items_max), False)
    if not isinstance(value, list):
        raise _wrong_type(path, "a list")
    if len(value) > items_max:
        raise invalid(f"{path} has at most {items_max} items", path)
    return tuple(read(item, f"{path}[{index}]") for index, item in enumerate(value))


def check_text(value: Any, path: str) -> str:
    """Text that can travel as UTF-8."""
    if (tell := _listener.get()) is not None:
        tell(path, {"type": "string"}, False)
    if type(value) is not str:
        raise _wrong_type(path, "text")
    # Most text is ASCII, which CPython knows without looking; a lone surrogate never is.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise invalid(f"{path} contains half of a surrogate pair", path) from None
    return value


def _text_schema(chars_max: int) -> Json:
    return {"type": "string", "minLength": 1, "maxLength": chars_max}


def _list_schema(items_max: int) -> Json:
    return {"type": "array", "maxItems": items_max}


def _text_reader(chars_max: int) -> Callable[[Any, str], str]:
    def read(value: Any, path: str) -> str:
        text = check_text(value, path)
        if not 0 < len(text) <= chars_max:
            raise invalid(f"{path} has 1 to {chars_max} characters", path)
        return text

    return read


def _wrong_type(path: str, expected: str) -> ApiError:
    return invalid(f"{path} must be {expected}", path, code="invalid_type")
