"""What a reader of requests reads, as a JSON schema: heard while it reads examples.

A field's type and limits are those that the reader itself checks; where it takes a value as it is,
the type is that of the examples. A field is required if the reader asks for it so in each object of
its place.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from coordinator.gateway.http.openapi.value_shapes import shape_of
from coordinator.gateway.http.strict_json import Json

_ITEMS = "[]"
_WORD = re.compile(r"\[\d+\]|[^.\[\]]+")
_ARRAY: Json = {"type": "array"}
_OBJECT: Json = {"type": "object"}


@dataclass(slots=True)
class BodyPlace:
    """One place in a body: what may stand there, and below it. `objects` counts the objects that
    were read there, and `required` in how many of them each field had to be given; `words` is a
    sentence about the place."""

    schemas: list[Json] = field(default_factory=list)
    children: dict[str, "BodyPlace"] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)
    required: dict[str, set[str]] = field(default_factory=dict)
    words: Json = field(default_factory=dict)

    def child(self, name: str) -> "BodyPlace":
        return self.children.setdefault(name, BodyPlace())

    def to_schema(self) -> Json:
        variants = self._variants()
        items = self.children.get(_ITEMS)
        if items is not None:
            variants = [
                variant | {"items": items.to_schema()}
                if variant.get("type") == "array"
                else variant
                for variant in _with(variants, _ARRAY)
            ]
        properties = {n: c.to_schema() for n, c in self.children.items() if n != _ITEMS}
        if properties:
            required = [n for n, where in self.required.items() if where == self.objects]
            shape = {"properties": properties} | ({"required": required} if required else {})
            variants = [
                variant | shape if variant.get("type") == "object" else variant
                for variant in _with(variants, _OBJECT)
            ]
        if len(variants) < 2:
            return (variants[0] if variants else {}) | self.words
        return {"anyOf": variants} | self.words

    def _variants(self) -> list[Json]:
        """The schemas that say most, each once."""
        known: list[Json] = []
        for schema in sorted(self.schemas, key=len, reverse=True):
            if schema and not any(schema.items() <= other.items() for other in known):
                known.append(schema)
        return known


def _with(variants: list[Json], kind: Json) -> list[Json]:
    has = any(variant.get("type") == kind["type"] for variant in variants)
    return variants if has else [*variants, kind]


class Readings:
    """Listens to one reader, while it reads one example after the other."""

    def __init__(self) -> None:
        self.root = BodyPlace([_OBJECT])
        self._examples: list[Json] = []

    def begin_example(self, example: Json) -> None:
        self._examples.append(example)

    def hear(self, path: str, schema: Json, is_required: bool) -> None:
        *above, name = words = _WORD.findall(path)
        node = self.root
        for word in above:
            node = node.child(_ITEMS if word.startswith("[") else word)
        name = _ITEMS if name.startswith("[") else name
        if "description" in schema:
            node.child(name).words = schema
            return
        node.child(name).schemas.append(schema or self._kind_of_value(words))
        # The object that the field belongs to, among all that stand at this place.
        where = f"{len(self._examples)}:{path[: -len(name)]}"
        node.objects.add(where)
        if is_required:
            node.required.setdefault(name, set()).add(where)

    def _kind_of_value(self, words: list[str]) -> Json:
        """The type of what stands there in the example that is read; empty if nothing does."""
        value: Any = self._examples[-1]
        for word in words:
            if word.startswith("["):
                value = value[int(word[1:-1])]
            elif isinstance(value, dict):
                value = value.get(word)
            else:
                return {}
        shape = shape_of(value)
        return {"type": shape["type"]} if shape else {}
