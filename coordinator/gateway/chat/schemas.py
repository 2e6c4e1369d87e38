"""Whether a JSON schema is one, before a model is asked to follow it. What a node's grammar engine
cannot follow, it refuses itself."""

import json
from typing import Any

from coordinator.gateway.errors import ApiError, invalid
from protocol.limits import FORMAT_CHARS_MAX

_TYPES = {"string", "number", "integer", "boolean", "object", "array", "null"}
# Keywords whose value is a schema, a list of schemas, or an object of them.
_ONE = ("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_OBJECTS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_NUMBERS = ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf")
_COUNTS = ("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties")


def schema_text(schema: Any, path: str) -> str:
    """A JSON schema as text for the wire. Raises ApiError (400), which names where it is wrong."""
    if not isinstance(schema, dict):
        raise invalid(f"{path} must be a JSON schema: an object", path, code="invalid_type")
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if len(text) > FORMAT_CHARS_MAX:
        raise invalid(f"{path} has {len(text)} characters; {FORMAT_CHARS_MAX} are the most", path)
    _check_text(text, path)
    _check(schema, path, schema)
    return text


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(f"{path} contains half of a surrogate pair", path) from None


def _check(schema: Any, path: str, root: dict[str, Any]) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise _wrong(path, "must be a schema: an object, or true or false")
    _check_values(schema, path, root)
    for name in _ONE:
        # A list of `items` is the older form of `prefixItems`.
        if isinstance(schema.get(name), list) and name == "items":
            _check_list(schema[name], f"{path}.{name}", root)
        elif name in schema:
            _check(schema[name], f"{path}.{name}", root)
    for name in _LISTS:
        if name in schema:
            _check_list(schema[name], f"{path}.{name}", root)
    for name in _OBJECTS:
        if name not in schema:
            continue
        if not isinstance(schema[name], dict):
            raise _wrong(f"{path}.{name}", "must be an object of schemas")
        for key, item in schema[name].items():
            _check(item, f"{path}.{name}.{key[:64]}", root)


def _check_list(schemas: Any, path: str, root: dict[str, Any]) -> None:
    if not isinstance(schemas, list) or not schemas:
        raise _wrong(path, "must be a list of schemas")
    for number, item in enumerate(schemas):
        _check(item, f"{path}[{number}]", root)


def _check_values(schema: dict[str, Any], path: str, root: dict[str, Any]) -> None:
    """The keywords that hold no schemas."""
    types = schema.get("type", [])
    for word in types if isinstance(types, list) else [types]:
        if not isinstance(word, str) or word not in _TYPES:
            raise _wrong(f"{path}.type", f"is one of {', '.join(sorted(_TYPES))}")
    if "enum" in schema and not (isinstance(schema["enum"], list) and schema["enum"]):
        raise _wrong(f"{path}.enum", "must be a list with a value")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _wrong(f"{path}.required", "must be a list of names")
    for name in _NUMBERS:
        if name in schema and type(schema[name]) not in (int, float):
            raise _wrong(f"{path}.{name}", "must be a number")
    for name in _COUNTS:
        if name in schema and not (type(schema[name]) is int and schema[name] >= 0):
            raise _wrong(f"{path}.{name}", "must be a whole number from 0 on")
    if not isinstance(schema.get("pattern", ""), str):
        raise _wrong(f"{path}.pattern", "must be a regular expression as text")
    if "$ref" in schema:
        _check_reference(schema["$ref"], f"{path}.$ref", root)


def _check_reference(reference: Any, path: str, root: dict[str, Any]) -> None:
    """Nothing is fetched from elsewhere, and what is not there cannot be followed."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise _wrong(path, "names a part of this schema, as in #/$defs/name")
    found: Any = root
    for step in filter(None, reference[1:].split("/")):
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key[:9]) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            raise _wrong(path, "names a part that this schema does not have")


def _wrong(path: str, why: str) -> ApiError:
    return invalid(f"{path} {why}", path)
