"""What a route is, and finding the one of a request. The tables stand in the dialects' folders."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

from starlette.routing import Match
from starlette.routing import Route as PathPattern

from coordinator.gateway.errors import ApiError, Problem
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.dialect import Dialect, JobCall
from coordinator.gateway.http.event_stream import open_event_stream
from coordinator.gateway.http.jobs import finish_jobs, finished_headers
from coordinator.gateway.http.purchases import serve_purchase
from coordinator.gateway.http.query import QueryParameter
from coordinator.gateway.http.requests import Request, Scope
from coordinator.gateway.http.responses import Reply, Response, header
from coordinator.gateway.http.routing_params import routed
from coordinator.gateway.http.strict_json import Fields
from coordinator.gateway.market_side.running import WholeAnswer
from protocol.messages import Task

# A node's output of this size takes milliseconds to write as text.
_LARGE_BYTES = 64 * 1024

_SLASHES = re.compile("//+")

Handler = Callable[[GatewayContext, Request], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """`json` is the type of an answer in JSON; None stands for another kind of content. `statuses`
    are those that have such an answer."""

    json: Any = None
    content_type: str = "application/json"
    statuses: tuple[int, ...] = (200,)


@dataclass(frozen=True, slots=True)
class Route:
    """`template` is a path in Starlette's form, and the route's name in metrics: a path may contain
    a model's name. Public routes take no key. `query` has the parameters that the handler reads.
    `job` is what the route buys, if it buys. Of the others `read` reads the JSON body, if they have
    one, `form` has the fields beside the file, if they take a form, and `answer` is what they
    answer with: None where they always refuse."""

    method: str
    template: str
    handler: Handler
    dialect: Dialect
    is_public: bool = False
    job: "JobRoute | None" = None
    query: tuple[QueryParameter, ...] = ()
    read: Callable[[Fields], object] | None = None
    form: tuple[QueryParameter, ...] = ()
    answer: AnswerShape | None = None


@dataclass(frozen=True, slots=True)
class JobRoute:
    """A POST that buys a job, or several. `read` makes its call from the fields of a JSON object,
    which came as a request's body or as a line of a batch; the call says the rest. `read_body` is
    for a route whose requests may have a body of another kind."""

    template: str
    task: Task
    dialect: Dialect
    read: Callable[[Fields], JobCall]
    read_body: Callable[[GatewayContext, Request], Awaitable[JobCall]] | None = None

    def to_route(self) -> Route:
        return Route("POST", self.template, self._serve, self.dialect, job=self)

    async def _serve(self, context: GatewayContext, request: Request) -> Reply:
        call = await self._read_call(context, request)
        request.keep(sum(order.input_bytes for order in call.orders))
        # The body may have taken a minute: the key may have been revoked meanwhile.
        await context.identify(request)
        return await serve_purchase(
            context,
            request,
            self.dialect,
            partial(self._answer, context, request, call),
            is_streamed=call.is_streamed,
        )

    async def _answer(self, context: GatewayContext, request: Request, call: JobCall) -> Reply:
        if call.is_streamed:
            return await open_event_stream(context, request, call, self.dialect)
        answers = await finish_jobs(context, request, call.orders)
        whole = [answer for answer in answers if isinstance(answer, WholeAnswer)]
        data_bytes = sum(len(chunk.data) for answer in whole for chunk in answer.chunks)
        is_large = data_bytes > _LARGE_BYTES
        arguments = (answers, context.now_s())
        answer = (
            await asyncio.to_thread(call.answer, *arguments)
            if is_large
            else call.answer(*arguments)
        )
        headers = finished_headers(context, request, answers)
        return Response(200, answer, headers=headers)

    async def _read_call(self, context: GatewayContext, request: Request) -> JobCall:
        if self.read_body is not None:
            return await self.read_body(context, request)
        return self.read(routed(await context.read_json(request), request))


@dataclass(frozen=True, slots=True)
class Found:
    """A route, and what its template's parameters are in this path."""

    route: Route
    parameters: dict[str, str]


class Router:
    """Finds routes by method and path. HEAD is answered where GET is.

    Base URLs with a slash too many, or with the version twice or not at all, are common: they are
    answered as if they were right.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = [
            (route, PathPattern(route.template, endpoint=route.handler, methods=[route.method]))
            for route in routes
        ]

    def find(self, scope: Scope) -> Found:
        """Raises ApiError (404, 405)."""
        allowed: list[str] = []
        for path in _readings(str(scope["path"])):
            asked = {"type": "http", "method": scope["method"], "path": path}
            for route, pattern in self._routes:
                match, found = pattern.matches(asked)
                if match is Match.FULL:
                    return Found(route, found["path_params"])
                if match is Match.PARTIAL:
                    allowed += sorted(pattern.methods or ())
            if allowed:
                raise _not_allowed(path, allowed)
        raise self._not_found(scope)

    def dialect_of(self, scope: Scope) -> Dialect | None:
        """Whose errors a path gets that has no route: those of the route that it has most in common
        with. None if it has nothing in common with any."""
        words = next(_readings(str(scope["path"]))).split("/")
        nearest = max(
            (route for route, _ in self._routes),
            # Of equals the shortest: `/v2` stands for all below it.
            key=lambda route: (_common(route.template, words), -len(route.template)),
        )
        # Both begin with nothing before their first slash.
        return nearest.dialect if _common(nearest.template, words) > 1 else None

    def _not_found(self, scope: Scope) -> ApiError:
        path = str(scope["path"])
        message = f"there is no {scope['method']} {path[:128]}"
        words = path[:256].split("/")
        meant = next((t for t in self._templates() if words[-2:] == t.split("/")[-2:]), None)
        if meant is not None:
            message += f": use {meant}"
        return ApiError(Problem(404, message, code="unknown_url"))

    def _templates(self) -> list[str]:
        return [route.template for route, _ in self._routes if "{" not in route.template]


_VERSION = "/v1"


def _readings(path: str) -> Iterator[str]:
    """What a path may mean, the plainest first."""
    path = _SLASHES.sub("/", path).rstrip("/") or "/"
    yield path
    bare = path
    while bare.startswith(_VERSION + "/"):
        bare = bare.removeprefix(_VERSION)
    yield _VERSION + bare
    # A few routes, such as /health, have no version.
    yield bare


def _common(template: str, words: Sequence[str]) -> int:
    """How many words two paths begin with alike."""
    pairs = zip(template.split("/"), words, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _not_allowed(path: str, allowed: list[str]) -> ApiError:
    return ApiError(
        Problem(
            405,
            f"use {' or '.join(allowed)} for {path[:128]}",
            code="method_not_allowed",
            headers=(header("allow", ", ".join(allowed)),),
        )
    )
