"""The parameters behind a path. A route reads them by the same objects that describe it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from coordinator.gateway.errors import invalid
from coordinator.gateway.http.requests import Request

_PARAMETERS_MAX = 32
_DIGITS_MAX = 6


def read_query(request: Request) -> Mapping[str, str]:
    """By name; of a parameter that comes twice, the last. Raises ApiError (400)."""
    text = bytes(request.scope.get("query_string", b"")).decode("latin-1")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_PARAMETERS_MAX))
    except ValueError:
        raise invalid("the query has too many parameters", None) from None


@dataclass(frozen=True, slots=True)
class TextParameter:
    """`shape` is what its JSON schema says beside its type."""

    name: str
    words: str
    shape: Mapping[str, Any] = field(default_factory=dict)
    is_required: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", **self.shape}


@dataclass(frozen=True, slots=True)
class CountParameter:
    """A number from 1 to `high`."""

    name: str
    words: str
    default: int
    high: int
    is_required: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": 1, "maximum": self.high, "default": self.default}

    def read(self, query: Mapping[str, str]) -> int:
        """Raises ApiError (400)."""
        text = query.get(self.name)
        if text is None:
            return self.default
        if not text.isdecimal() or len(text) > _DIGITS_MAX or not 1 <= int(text) <= self.high:
            raise invalid(f"{self.name} lies between 1 and {self.high}", self.name)
        return int(text)


QueryParameter = TextParameter | CountParameter
