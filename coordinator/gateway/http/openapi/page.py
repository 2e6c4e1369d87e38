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
    yield "| route | key | what it does | answer |"
    yield "|---|---|---|---|"
    for path, method, operation in _operations(document):
        key = "yes" if operation["security"] else "no"
        words, answer = _cell(operation["summary"]), _answer(operation)
        yield f"| `{method} {path}` | {key} | {words} | {answer} |"
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
    yield from _queries(document)
    yield from _shapes(document)


def _answer(operation: Json) -> str:
    """The kind of a whole answer, or the name of its shape."""
    content = operation["responses"].get("200", {}).get("content", {})
    for kind, part in content.items():
        name = _reference(part.get("schema", {}))
        return f"[{name}](#{name.lower()})" if name else f"`{kind}`"
    return "–"


def _reference(schema: Json) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _queries(document: Json) -> Iterator[str]:
    yield ""
    yield "## Parameters behind the path"
    yield ""
    yield "| route | parameter | value |"
    yield "|---|---|---|"
    for path, method, operation in _operations(document):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "query":
                value = _cell(f"{_value(parameter['schema'])}. {parameter['description']}")
                yield f"| `{method} {path}` | `{parameter['name']}` | {value} |"


def _shapes(document: Json) -> Iterator[str]:
    yield ""
    yield "## Answers"
    for name, schema in document["components"]["schemas"].items():
        yield ""
        yield f"### {name}"
        yield ""
        yield "| field | always | value |"
        yield "|---|---|---|"
        yield from _answer_rows(schema)


def _answer_rows(schema: Json) -> Iterator[str]:
    for field, is_always, value in _fields("", schema):
        yield f"| `{field}` | {'yes' if is_always else ''} | {_cell(value)} |"


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
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    if not _reference(answer):
        yield ""
        yield "| field of the answer | always | value |"
        yield "|---|---|---|"
        yield from _answer_rows(answer)


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
    """Of a body in JSON, or else of a form."""
    content = operation["requestBody"]["content"]
    schema: Json = next(iter(content.values()))["schema"]
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
    if "$ref" in schema:
        name = _reference(schema)
        return f"[{name}](#{name.lower()})"
    kinds = schema.get("type", "any value")
    kind = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    if kind == "array" and _reference(schema.get("items", {})):
        kind = f"array of {_value(schema['items'])}"
    if kind == "object" and schema.get("additionalProperties"):
        kind = f"object of {_value(schema['additionalProperties'])} by name"
    if "minimum" in schema:
        kind += f" from {schema['minimum']:,} to {schema['maximum']:,}"
    if "maxLength" in schema:
        kind += f" of up to {schema['maxLength']:,} characters"
    if "maxItems" in schema:
        kind += f" of up to {schema['maxItems']:,}"
    return kind


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
