"""What an answer must look like: OpenAI's `response_format`, and vLLM's names for the same."""

import json
from collections.abc import Callable
from typing import Any

from coordinator.gateway.chat.schemas import schema_text
from coordinator.gateway.errors import ApiError, invalid, unsupported
from coordinator.gateway.http.openai.names import check_neutral
from coordinator.gateway.http.strict_json import Fields, check_text, parse_object, read_list
from protocol.generation import FormatKind, OutputFormat
from protocol.limits import FORMAT_CHARS_MAX

_CHOICES_MAX = 1_024

# Beside tools that may be called: an answer is then a call, or JSON.
JSON_KINDS = (FormatKind.JSON_OBJECT, FormatKind.JSON_SCHEMA)

FORMAT_WORDS = {
    "response_format": "`text`, `json_object`, or `json_schema` with a schema that the answer "
    "follows; it is always strict.",
    "structured_outputs": "One of `json`, `regex`, `choice`, `grammar` and `json_object`, as at "
    "vLLM.",
    "guided_json": "A JSON schema that the answer follows.",
    "guided_regex": "A regular expression that the whole answer matches.",
    "guided_choice": "A list of texts, one of which is the answer.",
    "guided_grammar": "A grammar in llguidance's variant of Lark that the answer follows.",
}

_STRUCTURED = ("json", "regex", "choice", "grammar", "json_object")
# They choose an implementation, or how white space may stand in JSON.
_STRUCTURED_NEUTRAL = {
    "disable_fallback": (False, True),
    "disable_any_whitespace": (False,),
    "disable_additional_properties": (False,),
    "whitespace_pattern": ("",),
    "structural_tag": ("",),
}


def read_format(fields: Fields) -> OutputFormat | None:
    """Raises ApiError (400), also if the answer shall have two forms."""
    found = [
        (name, read(fields, name))
        for name, read in _READERS.items()
        if fields.raw(name) is not None
    ]
    formats = [(name, output_format) for name, output_format in found if output_format is not None]
    if len(formats) > 1:
        names = " and ".join(name for name, _ in formats)
        raise invalid(f"an answer has one form: leave out one of {names}", formats[1][0])
    return formats[0][1] if formats else None


def given_format(fields: Fields) -> str:
    """The parameter that says the form of an answer, where one does."""
    return next((name for name in _READERS if fields.raw(name) is not None), "response_format")


def _read_response_format(fields: Fields, name: str) -> OutputFormat | None:
    wanted = fields.fields(name)
    assert wanted is not None, "only what is given is read"
    kind = wanted.required("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return OutputFormat(FormatKind.JSON_OBJECT)
    if kind != "json_schema":
        path = wanted.path("type")
        raise invalid(f"{path} is one of text, json_object, json_schema", path)
    nested = wanted.fields("json_schema")
    if nested is None:
        raise invalid(
            f"you must give {wanted.path('json_schema')}",
            wanted.path("json_schema"),
            code="missing_required_parameter",
        )
    schema = nested.required("schema")
    return OutputFormat(FormatKind.JSON_SCHEMA, schema_text(schema, nested.path("schema")))


def _read_structured(fields: Fields, name: str) -> OutputFormat | None:
    wanted = fields.fields(name)
    assert wanted is not None, "only what is given is read"
    for other in wanted.unknown(_STRUCTURED):
        if other not in _STRUCTURED_NEUTRAL:
            path = wanted.path(other)
            raise unsupported(f"{path} is not supported: use {', '.join(_STRUCTURED)}", path)
        check_neutral(wanted, other, _STRUCTURED_NEUTRAL[other])
    given = [key for key in _STRUCTURED if wanted.raw(key) is not None]
    if len(given) > 1:
        raise invalid(f"{name} has one of {', '.join(_STRUCTURED)}", name)
    if not given:
        return None
    key = given[0]
    if key == "json_object":
        return OutputFormat(FormatKind.JSON_OBJECT) if wanted.flag(key) else None
    return _FORMS[key](wanted.raw(key), wanted.path(key))


def _json_form(value: Any, path: str) -> OutputFormat:
    """A schema, as an object or as its text."""
    if isinstance(value, str):
        try:
            value = parse_object(check_text(value, path).encode())
        except ApiError as error:
            raise invalid(f"{path} is no JSON schema: {error}", path) from None
    return OutputFormat(FormatKind.JSON_SCHEMA, schema_text(value, path))


def _regex_form(value: Any, path: str) -> OutputFormat:
    return OutputFormat(FormatKind.REGEX, _bounded(check_text(value, path), path))


def _grammar_form(value: Any, path: str) -> OutputFormat:
    return OutputFormat(FormatKind.GRAMMAR, _bounded(check_text(value, path), path))


def _choice_form(value: Any, path: str) -> OutputFormat:
    """As a grammar, whose texts are spelled like JSON's: a regular expression has more signs to
    escape."""
    choices = read_list(value, path, items_max=_CHOICES_MAX, read=_read_choice)
    if not choices:
        raise invalid(f"{path} is empty: there is nothing to choose from", path)
    grammar = "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in choices)
    return OutputFormat(FormatKind.GRAMMAR, _bounded(grammar, path))


def _read_choice(value: Any, path: str) -> str:
    text = check_text(value, path)
    if not text:
        raise invalid(f"{path} is empty", path)
    return text


def _bounded(text: str, path: str) -> str:
    if not 0 < len(text) <= FORMAT_CHARS_MAX:
        raise invalid(f"{path} has 1 to {FORMAT_CHARS_MAX} characters", path)
    return text


_FORMS: dict[str, Callable[[Any, str], OutputFormat]] = {
    "json": _json_form,
    "regex": _regex_form,
    "choice": _choice_form,
    "grammar": _grammar_form,
}


def _guided(form: Callable[[Any, str], OutputFormat]) -> Callable[[Fields, str], OutputFormat]:
    return lambda fields, name: form(fields.raw(name), name)


_READERS: dict[str, Callable[[Fields, str], OutputFormat | None]] = {
    "response_format": _read_response_format,
    "structured_outputs": _read_structured,
    **{f"guided_{key}": _guided(form) for key, form in _FORMS.items()},
}
