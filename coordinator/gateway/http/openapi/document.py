"""The OpenAPI document, from a table of routes."""

import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.errors import ApiError, Problem
from coordinator.gateway.http.dialect import Dialect
from coordinator.gateway.http.openapi.examples import REQUESTS
from coordinator.gateway.http.openapi.limits import limits_of
from coordinator.gateway.http.openapi.readings import Readings
from coordinator.gateway.http.openapi.samples import has_sample, streamed_answer, whole_answer
from coordinator.gateway.http.openapi.typed_shapes import REFERENCE, TypedShapes
from coordinator.gateway.http.openapi.value_shapes import shape_of
from coordinator.gateway.http.query import QueryParameter
from coordinator.gateway.http.routes import AnswerShape, JobRoute, Route
from coordinator.gateway.http.strict_json import Fields, Json, heard_by

_Read = Callable[[Fields], object]

_PARAMETER = re.compile(r"\{(\w+)(:\w+)?\}")

# No request has it by chance, so that a refusal is about the field.
_NEVER = "\x00never"

_INTRODUCTION = (
    "In request bodies null stands for absent. A parameter that could change the answer and cannot "
    "be honoured is refused by name; those that change nothing are ignored. Clients that have a "
    "base URL with a slash too many, with /v1 twice or without it, are answered all the same. "
    "Bodies may come compressed (gzip, deflate)."
)


def make_document(routes: Sequence[Route], config: GatewayConfig) -> Json:
    paths: dict[str, Json] = {}
    shapes = TypedShapes()
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", route.template)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, shapes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "CapaCloud gateway",
            "version": "1",
            "description": _INTRODUCTION,
            "x-limits": [asdict(limit) for limit in limits_of(config)],
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                **{name: _error_shape(d) for name, d in _dialects(routes).items()},
                **shapes.named,
            },
        },
    }


def _dialects(routes: Sequence[Route]) -> dict[str, Dialect]:
    return {_dialect_name(route.dialect): route.dialect for route in routes}


def _dialect_name(dialect: Dialect) -> str:
    return type(dialect).__name__.removesuffix("Dialect") + "Error"


def _error_shape(dialect: Dialect) -> Json:
    plain = Problem(500, "what is wrong, and what to do")
    problems = (plain, replace(plain, status=400, param="model", code="invalid_type"))
    return shape_of(*(json.loads(dialect.error_body(problem)) for problem in problems))


def _operation(route: Route, shapes: TypedShapes) -> Json:
    error = {"$ref": REFERENCE + _dialect_name(route.dialect)}
    refusal: Json = {
        "description": "what is wrong with the request, or with the market",
        "content": {"application/json": {"schema": error}},
    }
    operation: Json = {
        "operationId": _identifier(route),
        "summary": _summary(route),
        "security": [] if route.is_public else [{"key": []}],
        "responses": {"4XX": refusal, "5XX": refusal},
    }
    parameters = [
        *(_path_parameter(name) for name, _ in _PARAMETER.findall(route.template)),
        *(_query_parameter(parameter) for parameter in route.query),
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.answer is not None:
        operation["responses"] |= _described(route.answer, shapes)
    if route.read is not None:
        _describe_body(route.template, route.read, operation)
    if route.form:
        form = {"multipart/form-data": {"schema": _form_shape(route.form)}}
        operation["requestBody"] = {"required": True, "content": form}
    if route.job is not None:
        _describe_job(route.job, operation)
    return operation


def _path_parameter(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameter(parameter: QueryParameter) -> Json:
    return {
        "name": parameter.name,
        "in": "query",
        "required": parameter.is_required,
        "description": parameter.words,
        "schema": parameter.schema,
    }


def _form_shape(fields: Sequence[QueryParameter]) -> Json:
    """Of a form with one file."""
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    properties = {field.name: field.schema | {"description": field.words} for field in fields}
    required = [field.name for field in fields if field.is_required]
    return {
        "type": "object",
        "properties": {"file": file, **properties},
        "required": ["file", *required],
    }


def _described(answer: AnswerShape, shapes: TypedShapes) -> Json:
    """The responses of a route that buys nothing."""
    schema = {} if answer.json is None else {"schema": shapes.schema(answer.json)}
    response = {"description": "the answer", "content": {answer.content_type: schema}}
    return {str(status): response for status in answer.statuses}


def _identifier(route: Route) -> str:
    words = re.findall(r"\w+", _PARAMETER.sub(r"\1", route.template))
    return "_".join([route.method.lower(), *words])


def _summary(route: Route) -> str:
    if route.job is None:
        text = inspect.getdoc(route.handler)
    else:
        # A module may have the readers of several routes.
        own = (inspect.getdoc(route.job.read) or "").partition("Raises")[0].strip()
        text = own or inspect.getdoc(sys.modules[route.job.read.__module__])
    words = " ".join((text or "").partition("\n\n")[0].partition("Raises")[0].split())
    words = re.sub(r"^[A-Z]+ /\S+?[.:] ?", "", words)
    return words[:1].upper() + words[1:] or f"{route.method} {route.template}"


def _describe_job(job: JobRoute, operation: Json) -> None:
    _describe_body(job.template, job.read, operation)
    if job.read_body is not None:
        form = {"schema": {"type": "object"}}
        operation["requestBody"]["content"]["multipart/form-data"] = form
    if has_sample(job.task):
        operation["responses"]["200"] = {"description": "the answer", "content": _answers(job)}


def _describe_body(template: str, read: _Read, operation: Json) -> None:
    examples = REQUESTS[template]
    schema, refused = _read_schema(read, examples)
    content: Json = {"application/json": {"schema": schema, "examples": _named(examples)}}
    operation["requestBody"] = {"required": True, "content": content}
    if refused:
        operation["x-refused-parameters"] = refused


def _read_schema(read: _Read, examples: Sequence[Json]) -> tuple[Json, list[str]]:
    """The schema of the body, and the parameters that are refused unless they change nothing."""
    readings = Readings()
    with heard_by(readings.hear):
        for example in examples:
            readings.begin_example(example)
            read(Fields(example))
    schema = readings.root.to_schema()
    refused = [
        name
        for name, part in schema["properties"].items()
        if not part and _is_refused(read, examples[0], name)
    ]
    for name in refused:
        del schema["properties"][name]
    return schema, refused


def _is_refused(read: _Read, example: Json, name: str) -> bool:
    try:
        read(Fields(example | {name: _NEVER}))
    except ApiError as error:
        return error.problem.code == "unsupported_parameter"
    return False


def _answers(job: JobRoute) -> Json:
    examples = REQUESTS[job.template]
    example = examples[0]
    bodies = [json.loads(whole_answer(job.read(Fields(_unstreamed(e))))) for e in examples]
    content: Json = {"application/json": {"schema": shape_of(*bodies), "example": bodies[0]}}
    if example.get("stream"):
        events = streamed_answer(job.read(Fields(example))).decode()
        content["text/event-stream"] = {"schema": {"type": "string"}, "example": events}
    return content


def _unstreamed(example: Json) -> Json:
    return {name: value for name, value in example.items() if not name.startswith("stream")}


def _named(examples: Sequence[Json]) -> Json:
    return {str(number): {"value": example} for number, example in enumerate(examples, 1)}
