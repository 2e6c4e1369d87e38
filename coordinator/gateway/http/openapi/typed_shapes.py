"""The JSON schema of a type: of the TypedDicts that routes answer with."""

from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from coordinator.gateway.http.strict_json import Json

REFERENCE = "#/components/schemas/"

_NAMES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    NoneType: "null",
}


class TypedShapes:
    """`named` has the schemas of all TypedDicts that were met, by their names."""

    def __init__(self) -> None:
        self.named: dict[str, Json] = {}

    def schema(self, kind: Any) -> Json:
        """Raises TypeError for a type that no route should answer with."""
        if kind is Any:
            return {}
        if kind in _NAMES:
            return {"type": _NAMES[kind]}
        if is_typeddict(kind):
            return {"$ref": REFERENCE + self._name(kind)}
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is NotRequired:
            return self.schema(arguments[0])
        if origin is Annotated:
            return self.schema(arguments[0]) | {"description": arguments[1]}
        if origin in (Union, UnionType):
            return _union([self.schema(argument) for argument in arguments])
        if origin is Literal:
            return {"type": "string", "enum": list(arguments)}
        if origin is list:
            return {"type": "array", "items": self.schema(arguments[0])}
        if origin is dict:
            return {"type": "object", "additionalProperties": self.schema(arguments[1])}
        raise TypeError(f"{kind} has no JSON schema here")

    def _name(self, kind: Any) -> str:
        name: str = kind.__name__
        if name not in self.named:
            hints = get_type_hints(kind, include_extras=True)
            self.named[name] = {
                "type": "object",
                "properties": {field: self.schema(hint) for field, hint in hints.items()},
                "required": [field for field in hints if field in kind.__required_keys__],
            }
        return name


def _union(parts: list[Json]) -> Json:
    """One schema where the parts differ in their types only."""
    words = {key: value for part in parts for key, value in part.items() if key == "description"}
    bare = [{key: part[key] for key in part if key != "description"} for part in parts]
    if all(list(part) == ["type"] for part in bare):
        return {"type": [part["type"] for part in bare]} | words
    return {"anyOf": bare} | words
