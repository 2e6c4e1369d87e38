"""The calls of GRPCInferenceService."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc

from coordinator.errors import CoordinatorError
from coordinator.gateway.errors import ApiError
from coordinator.gateway.grpc.calls import RpcCall, abort, admitted
from coordinator.gateway.grpc.kept import Answer, serve_kept
from coordinator.gateway.grpc.reading import read_infer_request, write_infer_response
from coordinator.gateway.grpc.wire import MESSAGES, SERVICE
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.oip.routes import (
    list_models,
    look_ready,
    named_model,
    server_metadata,
    statistics_plain,
)
from coordinator.gateway.http.oip.running import routing_fields, run_inference
from coordinator.gateway.http.oip.streaming import InferenceStream, refuse_key
from coordinator.gateway.http.oip.writing import metadata_plain
from coordinator.gateway.http.routing_params import read_routing
from coordinator.gateway.inference.models import platform_of, signature_of, version_of
from coordinator.gateway.inference.stream_items import StreamReply, StreamRequest
from protocol.messages import Task
from protocol.tensors import Datatype

# Numbers of the datatypes in a model's configuration.
_CONFIG_TYPES = {
    datatype: number
    for number, datatype in enumerate(
        (
            Datatype.BOOL,
            Datatype.UINT8,
            Datatype.UINT16,
            Datatype.UINT32,
            Datatype.UINT64,
            Datatype.INT8,
            Datatype.INT16,
            Datatype.INT32,
            Datatype.INT64,
            Datatype.FP16,
            Datatype.FP32,
            Datatype.FP64,
            Datatype.BYTES,
            Datatype.BF16,
        ),
        1,
    )
}


# Marks a request of a stream whose rows were answered by another one: it has no response.
_CONTEXT = "capacloud_context"

# Calls that need no key.
PUBLIC = frozenset(f"/{SERVICE}/{name}" for name in ("ServerLive", "ServerReady", "ServerMetadata"))


class InferenceService:
    """Handlers for grpc.aio. A call that the client gives up, or whose deadline passes, is
    cancelled by it, and with it the job."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context

    def handler(self) -> grpc.GenericRpcHandler:
        unary: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._with_key(self._model_ready),
            "ModelMetadata": self._with_key(self._model_metadata),
            "ModelConfig": self._with_key(self._model_config),
            "ModelStatistics": self._with_key(self._model_statistics),
            "RepositoryIndex": self._with_key(self._repository_index),
            "ModelInfer": self._with_key(self._model_infer),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                handle,
                request_deserializer=MESSAGES[f"{name}Request"].FromString,
                response_serializer=MESSAGES[f"{name}Response"].SerializeToString,
            )
            for name, handle in unary.items()
        }
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._model_stream_infer,
            request_deserializer=MESSAGES["ModelInferRequest"].FromString,
            response_serializer=MESSAGES["ModelStreamInferResponse"].SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _with_key(
        self, answer: Callable[[Any, Any, RpcCall], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def handle(request: Any, rpc: Any) -> Any:
            try:
                async with admitted(self._context, rpc) as call:
                    return await answer(request, rpc, call)
            # The boundary of one call.
            except Exception as error:
                return await abort(rpc, error)

        return handle

    # Without a key.

    async def _server_live(self, request: Any, rpc: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _server_ready(self, request: Any, rpc: Any) -> Any:
        try:
            is_ready = await look_ready(self._context)
        except CoordinatorError as error:
            return await abort(rpc, error)
        return MESSAGES["ServerReadyResponse"](ready=is_ready)

    async def _server_metadata(self, request: Any, rpc: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](**server_metadata())

    # With one.

    async def _model_ready(self, request: Any, rpc: Any, call: RpcCall) -> Any:
        model = await named_model(self._context, request.name, request.version)
        return MESSAGES["ModelReadyResponse"](ready=model.nodes > 0)

    async def _model_metadata(self, request: Any, rpc: Any, call: RpcCall) -> Any:
        model = await named_model(self._context, request.name, request.version)
        return MESSAGES["ModelMetadataResponse"](**metadata_plain(model))

    async def _model_config(self, request: Any, rpc: Any, call: RpcCall) -> Any:
        model = await named_model(self._context, request.name, request.version)
        response = MESSAGES["ModelConfigResponse"]()
        config = response.config
        config.name, config.platform = model.name, platform_of(model)
        signature = signature_of(model)
        for listed, tensors in (
            (config.input, signature.inputs if signature else ()),
            (config.output, signature.outputs if signature else ()),
        ):
            for tensor in tensors:
                number = _CONFIG_TYPES[tensor.datatype]
                listed.add(name=tensor.name, data_type=number, dims=list(tensor.shape))
        # A text comes in pieces over a stream.
        config.model_transaction_policy.decoupled = model.task is Task.CAUSAL_LM
        return response

    async def _model_statistics(self, request: Any, rpc: Any, call: RpcCall) -> Any:
        context = self._context
        if request.name:
            models = [await named_model(context, request.name, request.version)]
        else:
            models = await context.bridge.call(list_models, context.market)
        assert call.caller is not None, "the call needs a key"
        plain = statistics_plain(context, call.caller, models)
        return MESSAGES["ModelStatisticsResponse"](**plain)

    async def _repository_index(self, request: Any, rpc: Any, call: RpcCall) -> Any:
        models = await self._context.bridge.call(list_models, self._context.market)
        response = MESSAGES["RepositoryIndexResponse"]()
        for model in models:
            is_ready = model.nodes > 0
            if is_ready or not request.ready:
                state = "READY" if is_ready else "UNAVAILABLE"
                response.models.add(name=model.name, version=version_of(model), state=state)
        return response

    async def _model_infer(self, message: Any, rpc: Any, call: RpcCall) -> Any:
        call.place.grow(message.ByteSize())
        request = read_infer_request(message)
        routing = read_routing(call.routed(routing_fields(request)))

        async def produce() -> Answer:
            finished = await run_inference(self._context, call, request, routing)
            return write_infer_response(finished.answer), finished.headers

        response, trailers = await serve_kept(self._context, call, message, produce)
        rpc.set_trailing_metadata(trailers)
        return response

    async def _model_stream_infer(self, messages: Any, rpc: Any) -> AsyncIterator[Any]:
        try:
            async with admitted(self._context, rpc) as call:
                refuse_key(call.idempotency_key)
                stream = InferenceStream(self._context, call)
                async with asyncio.TaskGroup() as group:
                    feeding = group.create_task(_feed(stream, messages))
                    async for reply in stream.replies():
                        yield _stream_response(reply)
                    feeding.cancel()
        # The boundary of one call.
        except Exception as error:
            await abort(rpc, _first_of(error))


async def _feed(stream: InferenceStream, messages: Any) -> None:
    """Until the client has sent its last request."""
    async for message in messages:
        try:
            item: StreamRequest | ApiError = _stream_request(message)
        except ApiError as error:
            item = error
        await stream.put(item)
    await stream.close()


def _stream_request(message: Any) -> StreamRequest:
    """Raises ApiError (400)."""
    request = read_infer_request(message)
    parameters = dict(request.parameters)
    is_context = bool(parameters.pop(_CONTEXT, False))
    return StreamRequest.of(replace(request, parameters=parameters), is_context=is_context)


def _stream_response(reply: StreamReply) -> Any:
    response = MESSAGES["ModelStreamInferResponse"]()
    if isinstance(reply.answer, ApiError):
        response.error_message = reply.answer.problem.message
        response.infer_response.id = reply.request.id
        return response
    parameters: dict[str, Any] = {"triton_final_response": reply.is_final}
    if reply.elements:
        parameters["capacloud_elements"] = reply.elements
    if reply.node:
        parameters["capacloud_node"] = reply.node
        parameters["capacloud_cost_nano"] = reply.cost_nano
    response.infer_response.CopyFrom(write_infer_response(reply.answer, **parameters))
    return response


def _first_of(error: BaseException) -> BaseException:
    """What ended a group of tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
