"""docs/api.md: the same description for people."""

from collections.abc import Iterator

from coordinator.gateway.http.strict_json import Json

_HEAD = """# The HTTP API

Made by `python -m coordinator.gateway.http.openapi`: do not edit it. `GET /openapi.json` is the
same for programs.

"""

# Most routes have it.
_PROVIDER = "provider"


def make_page(document: Json) -> str:
    return _HEAD + "\n".join(_lines(document)) + "\n"


def _lines(document: Json) -> Iterator[str]:
    yield document["info"]["description"]
    yield ""
    yield "| route | key | what it does |"
    yield "|---|---|---|"
    for path, method, operation in _operations(document):
        key = "yes" if operation["security"] else "no"
        yield f"| `{method} {path}` | {key} | {_cell(operation['summary'])} |"
    yield ""
    yield "## Limits"
    yield ""
    yield "| limit | setting | what it bounds |"
    yield "|---|---|---|"
    for limit in document["info"]["x-limits"]:
        name = f"`{limit['name']}`" if limit["name"] else "–"
        yield f"| {limit['value']:,} | {name} | {limit['meaning']} |"
    for path, method, operation in _operations(document):
        if "requestBody" in operation:
            yield from _body(path, method, operation)
    yield from _provider(document)


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def _body(path: str, method: str, operation: Json) -> Iterator[str]:
    yield ""
    yield f"## {method} {path}"
    yield ""
    yield "| field | required | value |"
    yield "|---|---|---|"
    for name, is_required, value in _fields("", _schema_of(operation)):
        if not name.startswith(f"{_PROVIDER}."):
            yield f"| `{name}` | {'yes' if is_required else ''} | {_cell(value)} |"
    refused = operation.get("x-refused-parameters", [])
    if refused:
        yield ""
        yield "Refused, unless the value changes nothing: " + ", ".join(f"`{n}`" for n in refused)


def _provider(document: Json) -> Iterator[str]:
    """The object that says where a job may run, once for all routes that have it."""
    schemas = (
        _schema_of(operation)["properties"][_PROVIDER]
        for _, _, operation in _operations(document)
        if "requestBody" in operation and _PROVIDER in _schema_of(operation)["properties"]
    )
    yield ""
    yield f"## The `{_PROVIDER}` object"
    yield ""
    yield "| field | value |"
    yield "|---|---|"
    for name, _, value in _fields("", next(schemas)):
        yield f"| `{name}` | {_cell(value)} |"


def _schema_of(operation: Json) -> Json:
    schema: Json = operation["requestBody"]["content"]["application/json"]["schema"]
    return schema


def _fields(prefix: str, schema: Json) -> Iterator[tuple[str, bool, str]]:
    """Every field below, with its name, whether it must be given, and what it may be."""
    for variant in schema.get("anyOf", [schema]):
        for name, part in variant.get("properties", {}).items():
            path = f"{prefix}{name}"
            words = f": {part['description']}" if "description" in part else ""
            yield path, name in variant.get("required", []), _value(part) + words
            yield from _fields(f"{path}.", part)
        if "items" in variant:
            yield from _fields(f"{prefix.removesuffix('.')}[].", variant["items"])


def _value(schema: Json) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_value, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    kind = str(schema.get("type", "any value"))
    if "minimum" in schema:
        kind += f" from {schema['minimum']:,} to {schema['maximum']:,}"
    if "maxLength" in schema:
        kind += f" of up to {schema['maxLength']:,} characters"
    if "maxItems" in schema:
        kind += f" of up to {schema['maxItems']:,}"
    return kind


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
