"""`/v1/stream`: records in, predictions out, over a WebSocket.

Messages are JSON objects with a `type`. The client opens with `open` (`model`, and what `version`,
`outputs` and `parameters` are in an inference request) and sends a `record` for each (`inputs`, and
an `id` if it likes). The door answers `opened`, and then a `prediction` or an `error` for each
record, in their order: `sequence` counts them from 0. A record with `context: true` was answered on
another connection: it only fills the model's window. After `close` the door answers what is left,
and says with `closed` what all of it was and cost.

What the client sends faster than it is answered waits, and then its sender does; so do jobs for a
client that does not read.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import structlog

from coordinator.errors import CoordinatorError
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError, Problem, api_error_of, error_of, invalid
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.fair_places import Place
from coordinator.gateway.http.local_only import check_local
from coordinator.gateway.http.oip.reading import read_request
from coordinator.gateway.http.oip.routes import named_model
from coordinator.gateway.http.oip.streaming import InferenceStream, refuse_key
from coordinator.gateway.http.oip.writing import metadata_plain, output_plain
from coordinator.gateway.http.openai.dialect import OPENAI, error_object
from coordinator.gateway.http.requests import ClientGone, Request, Scope
from coordinator.gateway.http.responses import REQUEST_ID, Receive, Send, header
from coordinator.gateway.http.routing_params import routed
from coordinator.gateway.http.strict_json import Fields, parse_object
from coordinator.gateway.inference.models import signature_of, version_of
from coordinator.gateway.inference.stream_items import StreamReply, StreamRequest
from protocol.errors import Code
from protocol.limits import NAME_CHARS_MAX, TENSORS_MAX

log = structlog.get_logger(__name__)

PATH = "/v1/stream"

# A client that sends nothing for so long is gone, or has nothing to say.
_IDLE_S = 300.0
# Of the WebSocket protocol: all is well, what you sent is wrong, we failed.
_NORMAL, _POLICY, _FAILED = 1000, 1008, 1011


class StreamDoor:
    """One connection, from its handshake to its end."""

    def __init__(
        self, context: GatewayContext, request: Request, receive: Receive, send: Send
    ) -> None:
        self._context = context
        self._request = request
        self._receive = receive
        self._send = send
        self._records = self._elements = self._cost_nano = 0

    async def serve(self) -> None:
        message = await self._receive()
        if message["type"] != "websocket.connect":
            return
        try:
            await self._admit()
        except CoordinatorError as error:
            await self._refuse(api_error_of(error).problem)
            return
        headers = ((REQUEST_ID, self._request.request_id.encode()),)
        await self._send({"type": "websocket.accept", "headers": headers})
        try:
            await self._stream()
        except ClientGone:
            return
        except CoordinatorError as error:
            await self._fail(api_error_of(error).problem)
        except TimeoutError:
            await self._send({"type": "websocket.close", "code": _NORMAL, "reason": "idle"})
        except Exception as error:
            # The boundary of one stream: its client gets an error, as of one request.
            log.error("stream_crashed", request_id=self._request.request_id, exc_info=error)
            await self._fail(error_of(Code.INTERNAL, "").problem)

    async def _admit(self) -> None:
        """As a request is let in. Raises ApiError."""
        context, request = self._context, self._request
        check_local(request, context.config)
        await context.identify(request)
        refuse_key(request.idempotency_key)
        caller = request.caller
        assert caller is not None, "an identified request has a caller"
        if caller.requests_per_minute is not None:
            context.limits.take(caller.key_id, caller.requests_per_minute)
        request.place = context.places.enter(caller.owner)

    async def _stream(self) -> None:
        """Raises ApiError, ClientGone, TimeoutError."""
        opening = await self._next_message()
        if opening.raw("type") != "open":
            raise invalid("the first message has type open", "type")
        name = opening.text("model", chars_max=NAME_CHARS_MAX)
        version = (
            opening.text("version", chars_max=NAME_CHARS_MAX) if opening.raw("version") else ""
        )
        model = await named_model(self._context, name, version)
        signature = signature_of(model)
        plain = {name: value for name, value in metadata_plain(model).items() if name != "versions"}
        await self._say(
            "opened",
            plain
            | {
                "version": version_of(model),
                "window_rows": signature.window_rows if signature is not None else 0,
            },
        )
        stream = InferenceStream(self._context, _Call(self._request))
        reading = asyncio.ensure_future(self._read(stream, opening, name, version))
        answering = asyncio.ensure_future(self._answer(stream))
        try:
            # The reader ends first when all is well, and at once when anything is wrong.
            await asyncio.wait({reading, answering}, return_when=asyncio.FIRST_EXCEPTION)
            for task in (answering, reading):
                if task.done():
                    task.result()
        finally:
            for task in (reading, answering):
                task.cancel()
            await asyncio.gather(reading, answering, return_exceptions=True)
        totals = {
            "records": self._records,
            "elements": self._elements,
            "cost_nano": self._cost_nano,
        }
        await self._say("closed", totals)
        await self._send({"type": "websocket.close", "code": _NORMAL})

    async def _read(
        self, stream: InferenceStream, opening: Fields, name: str, version: str
    ) -> None:
        """Until the client says `close`. Raises ApiError, ClientGone, TimeoutError."""
        outputs = opening.texts("outputs", items_max=TENSORS_MAX, chars_max=NAME_CHARS_MAX)
        defaults = {
            "outputs": [{"name": output} for output in outputs] or None,
            "parameters": _parameters_of(opening),
        }
        while True:
            message = await self._next_message()
            kind = message.raw("type")
            if kind == "close":
                await stream.close()
                return
            if kind != "record":
                raise invalid("a message has type record or close", "type")
            await stream.put(_read_record(message, defaults, name, version))

    async def _answer(self, stream: InferenceStream) -> None:
        """Until all is answered. Raises ApiError, ClientGone."""
        sequence = 0
        async for reply in stream.replies():
            await self._tell(reply, sequence)
            sequence += reply.is_final

    async def _tell(self, reply: StreamReply, sequence: int) -> None:
        place: dict[str, Any] = {"sequence": sequence}
        if isinstance(reply.answer, ApiError):
            await self._say("error", place | {"error": error_object(reply.answer.problem)})
            return
        self._records += reply.is_final
        self._elements += reply.elements
        self._cost_nano += reply.cost_nano
        told: dict[str, Any] = {
            "id": reply.answer.id,
            "outputs": [output_plain(tensor) for tensor in reply.answer.outputs],
            "elements": reply.elements,
        }
        if not reply.is_final:
            told["is_final"] = False
        if reply.node:
            # Of all records since the last that said so: they were one job.
            told |= {"cost_nano": reply.cost_nano, "node": reply.node}
        await self._say("prediction", place | told)

    async def _next_message(self) -> Fields:
        """Raises ApiError, ClientGone, TimeoutError."""
        async with asyncio.timeout(_IDLE_S):
            message = await self._receive()
        if message["type"] != "websocket.receive":
            raise ClientGone
        text = message.get("text")
        data = text.encode() if text is not None else message["bytes"]
        return Fields(parse_object(data))

    async def _say(self, kind: str, content: Mapping[str, Any]) -> None:
        text = json.dumps({"type": kind, **content}, ensure_ascii=False)
        await self._send({"type": "websocket.send", "text": text})

    async def _fail(self, problem: Problem) -> None:
        """What is wrong, and the end."""
        await self._say("error", {"error": error_object(problem)})
        code = _POLICY if problem.status < 500 else _FAILED
        await self._send({"type": "websocket.close", "code": code, "reason": problem.code[:64]})

    async def _refuse(self, problem: Problem) -> None:
        """Answer the handshake as a request is answered."""
        body = OPENAI.error_body(problem)
        headers = (
            (b"content-type", b"application/json"),
            header("content-length", len(body)),
            *problem.headers,
        )
        start = {"type": "websocket.http.response.start", "status": problem.status}
        await self._send({**start, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": body})


class _Call:
    """A `StreamCall`."""

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def request_id(self) -> str:
        return self._request.request_id

    @property
    def caller(self) -> Caller | None:
        return self._request.caller

    @property
    def place(self) -> Place:
        place = self._request.place
        assert place is not None, "a stream that was let in has a place"
        return place

    async def identify(self, context: GatewayContext) -> None:
        await context.identify(self._request)

    def routed(self, fields: Fields) -> Fields:
        return routed(fields, self._request)


def is_stream_path(scope: Scope) -> bool:
    return str(scope["path"]).rstrip("/") == PATH


def _parameters_of(message: Fields) -> dict[str, Any]:
    """Raises ApiError (400)."""
    if message.fields("parameters") is None:
        return {}
    parameters: dict[str, Any] = message.raw("parameters")
    return parameters


def _read_record(
    message: Fields, defaults: Mapping[str, Any], name: str, version: str
) -> StreamRequest | ApiError:
    """An error is told in its turn."""
    try:
        values = {
            "inputs": message.raw("inputs"),
            "id": message.raw("id"),
            "outputs": message.raw("outputs") or defaults["outputs"],
            "parameters": defaults["parameters"] | _parameters_of(message),
        }
        read = read_request(Fields(values), model=name, version=version)
        return StreamRequest.of(read.request, is_context=bool(message.flag("context")))
    except ApiError as error:
        return error
