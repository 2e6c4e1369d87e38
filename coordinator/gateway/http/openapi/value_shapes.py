"""The JSON schema of values: their types, and all of their fields."""

from coordinator.gateway.http.strict_json import Json

_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def shape_of(*values: object) -> Json:
    """What all of them have in common. Empty if they are all null, which says nothing."""
    variants = [variant for variant in _variants(values) if variant]
    if not variants:
        return {}
    if any(value is None for value in values):
        variants.append({"type": "null"})
    if len(variants) == 1:
        return variants[0]
    if all(list(variant) == ["type"] for variant in variants):
        return {"type": [variant["type"] for variant in variants]}
    return {"anyOf": variants}


def _variants(values: tuple[object, ...]) -> list[Json]:
    objects = [value for value in values if isinstance(value, dict)]
    lists = [value for value in values if isinstance(value, list)]
    kinds = {_NAMES[type(value)] for value in values if type(value) in _NAMES}
    if "number" in kinds:
        kinds.discard("integer")
    variants: list[Json] = [{"type": kind} for kind in sorted(kinds)]
    if objects:
        variants.append(_object_shape(objects))
    if lists:
        items = shape_of(*(item for value in lists for item in value))
        variants.append({"type": "array"} | ({"items": items} if items else {}))
    return variants


def _object_shape(objects: list[Json]) -> Json:
    names = {name: None for value in objects for name in value}
    return {
        "type": "object",
        "properties": {
            name: shape_of(*(value[name] for value in objects if name in value)) for name in names
        },
        "required": [name for name in names if all(name in value for value in objects)],
    }
