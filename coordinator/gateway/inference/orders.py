"""From an inference request to the jobs that it is, by the task of its model."""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coordinator.gateway.errors import ApiError, error_of, invalid, unsupported
from coordinator.gateway.inference.messages import PARAMETERS_MAX, InferenceRequest
from coordinator.gateway.inference.models import IMAGE, TEXT_INPUT, signature_of
from coordinator.gateway.market_side.market import ModelInfo
from coordinator.gateway.orders import (
    OUTPUT_TOKENS_DEFAULT,
    GenerationOrder,
    Order,
    PlainOrder,
    Routing,
    check_text_size,
)
from protocol.errors import Code
from protocol.generation import GenerationInput
from protocol.limits import EMBEDDING_TEXTS_MAX, LABELS_MAX, PAYLOAD_BYTES_MAX
from protocol.messages import Task
from protocol.payload import EmbeddingInput, ImageInput
from protocol.tensors import Datatype, ModelSignature, NamedTensor, StreamPlace, TensorInput

# Of one request: each is a job.
_PROMPTS_MAX = 128
_IMAGES_MAX = 32
_LABELS_DEFAULT = 5
_PIXELS_MAX = 4_096

# Parameters of other servers that cannot change an answer of ours.
_IGNORED = frozenset(
    {"priority", "timeout", "binary_data_output", "triton_enable_empty_final_response"}
)
# Read by who reads the routing.
ROUTING = frozenset({"provider", "session"})
_SAMPLING: Mapping[str, tuple[type, ...]] = {
    "max_tokens": (int,),
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": (int,),
    "min_p": (int, float),
    "seed": (int,),
    "stop": (str,),
    "ignore_eos": (bool,),
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "repetition_penalty": (int, float),
    "min_tokens": (int,),
}
# Room for the encoded input around its tensors.
_DATA_BYTES_MAX = PAYLOAD_BYTES_MAX - 64 * 1_024


def orders_of(
    request: InferenceRequest,
    routing: Routing,
    model: ModelInfo,
    *,
    context_rows: int = 0,
    place: StreamPlace | None = None,
) -> tuple[Order, ...]:
    """`context_rows` and `place` are of a request that is a part of a stream of tensors. Raises
    ApiError (400, 413)."""
    if len(request.parameters) > PARAMETERS_MAX:
        raise invalid(f"a request has at most {PARAMETERS_MAX} parameters", "parameters")
    signature = signature_of(model)
    if signature is not None:
        _check_outputs(request, signature)
    if model.task is Task.TENSOR:
        _refuse_unknown(request, ())
        return (_tensor_order(request, routing, signature, context_rows, place),)
    return tuple(_MAKERS[model.task](request, routing))


def _tensor_order(
    request: InferenceRequest,
    routing: Routing,
    signature: ModelSignature | None,
    context_rows: int,
    place: StreamPlace | None,
) -> PlainOrder:
    if signature is not None:
        check_inputs(request, signature)
    size = sum(len(tensor.data) for tensor in request.inputs)
    if size > _DATA_BYTES_MAX:
        raise error_of(
            Code.INPUT_TOO_LARGE,
            f"the inputs have {size} bytes; one request takes {_DATA_BYTES_MAX}",
            input_param="inputs",
        )
    try:
        job_input = TensorInput(request.inputs, request.outputs, context_rows, place)
    except ValueError as error:
        raise invalid(str(error), "inputs") from None
    return PlainOrder(Task.TENSOR, "inputs", routing, job_input, size)


def _text_orders(request: InferenceRequest, routing: Routing) -> Sequence[Order]:
    """A job for each prompt."""
    _refuse_unknown(request, _SAMPLING)
    prompts = _texts(request, items_max=_PROMPTS_MAX)
    options: dict[str, Any] = {"max_tokens": OUTPUT_TOKENS_DEFAULT, **_read_sampling(request)}
    try:
        return tuple(
            GenerationOrder(
                routing, GenerationInput(prompt=prompt, **options), len(prompt.encode())
            )
            for prompt in prompts
        )
    except ValueError as error:
        raise invalid(str(error), "parameters") from None


def _read_sampling(request: InferenceRequest) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kinds in _SAMPLING.items():
        value = request.parameters.get(name)
        if value is None:
            continue
        # By exact type: a flag is no number.
        if type(value) not in kinds:
            raise invalid(f"parameters.{name} is no {kinds[-1].__name__}", f"parameters.{name}")
        found[name] = (value,) if name == "stop" else value
    return found


def _embedding_orders(request: InferenceRequest, routing: Routing) -> Sequence[Order]:
    _refuse_unknown(request, ())
    texts = _texts(request, items_max=EMBEDDING_TEXTS_MAX)
    size = sum(len(text.encode()) for text in texts)
    return (PlainOrder(Task.EMBEDDING, TEXT_INPUT, routing, EmbeddingInput(texts), size),)


def _image_orders(request: InferenceRequest, routing: Routing) -> Sequence[Order]:
    """A job for each picture."""
    _refuse_unknown(request, ("top_k",))
    tensor = _only_input(request, IMAGE)
    top_k = request.parameters.get("top_k", _LABELS_DEFAULT)
    if type(top_k) is not int or not 0 < top_k <= LABELS_MAX:
        raise invalid(f"parameters.top_k lies between 1 and {LABELS_MAX}", "parameters.top_k")
    files = _files_of(tensor)
    if any(not 0 < len(file) <= _DATA_BYTES_MAX for file in files):
        raise error_of(Code.IMAGE_TOO_LARGE, "a picture is empty or too large")
    return tuple(
        PlainOrder(
            Task.IMAGE_CLASSIFICATION, IMAGE, routing, ImageInput(file, top_k=top_k), len(file)
        )
        for file in files
    )


def _files_of(tensor: NamedTensor) -> Sequence[bytes]:
    """JPEG or PNG files: BYTES has some, UINT8 the bytes of one, or [height, width, 3] pixels."""
    if tensor.datatype is Datatype.BYTES:
        files = tensor.strings()
        if len(files) > _IMAGES_MAX:
            raise invalid(f"a request has at most {_IMAGES_MAX} pictures", IMAGE)
        return files
    if tensor.datatype is Datatype.UINT8 and len(tensor.shape) == 1:
        return (tensor.data,)
    if tensor.datatype is Datatype.UINT8 and len(tensor.shape) == 3 and tensor.shape[2] == 3:
        height, width, _ = tensor.shape
        if max(height, width) > _PIXELS_MAX:
            raise error_of(
                Code.IMAGE_TOO_LARGE, f"a picture has at most {_PIXELS_MAX} pixels a side"
            )
        return (_png_of(tensor.data, width=width, height=height),)
    raise invalid(
        "image is BYTES with files, or UINT8 with one file or [height, width, 3] pixels", IMAGE
    )


def _png_of(pixels: bytes, *, width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    row_bytes = 3 * width
    rows = b"".join(b"\0" + pixels[at : at + row_bytes] for at in range(0, len(pixels), row_bytes))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )


_MAKERS: Mapping[Task, Callable[[InferenceRequest, Routing], Sequence[Order]]] = {
    Task.CAUSAL_LM: _text_orders,
    Task.EMBEDDING: _embedding_orders,
    Task.IMAGE_CLASSIFICATION: _image_orders,
}


def _texts(request: InferenceRequest, *, items_max: int) -> tuple[str, ...]:
    """Raises ApiError (400, 413)."""
    tensor = _only_input(request, TEXT_INPUT)
    if tensor.datatype is not Datatype.BYTES:
        raise invalid(f"{TEXT_INPUT} is of BYTES, not of {tensor.datatype}", TEXT_INPUT)
    check_text_size(len(tensor.data), TEXT_INPUT)
    if tensor.elements > items_max:
        raise invalid(f"{TEXT_INPUT} has at most {items_max} texts", TEXT_INPUT)
    try:
        texts = tuple(string.decode() for string in tensor.strings())
    except UnicodeDecodeError:
        raise invalid(f"{TEXT_INPUT} is not UTF-8", TEXT_INPUT) from None
    if not all(texts):
        raise invalid(f"a text of {TEXT_INPUT} is empty", TEXT_INPUT)
    return texts


def _only_input(request: InferenceRequest, name: str) -> NamedTensor:
    if [tensor.name for tensor in request.inputs] != [name]:
        raise invalid(f"this model takes one input, {name}", "inputs")
    return request.inputs[0]


def check_inputs(request: InferenceRequest, signature: ModelSignature) -> None:
    """Raises ApiError (400) unless they are what the model takes."""
    wanted = {tensor.name: tensor for tensor in signature.inputs}
    given = {tensor.name for tensor in request.inputs}
    for name in wanted.keys() - given:
        raise invalid(f"the model's input {name} is missing", "inputs")
    for tensor in request.inputs:
        expected = wanted.get(tensor.name)
        if expected is None:
            raise invalid(f"the model has no input {tensor.name}: {_list(wanted)}", "inputs")
        if tensor.datatype is not expected.datatype or not expected.fits(tensor.shape):
            raise invalid(
                f"input {tensor.name} is {tensor.datatype} {list(tensor.shape)}; the model takes "
                f"{expected.datatype} {list(expected.shape)}",
                "inputs",
            )


def _check_outputs(request: InferenceRequest, signature: ModelSignature) -> None:
    known = {output.name for output in signature.outputs}
    for name in request.outputs:
        if name not in known:
            raise invalid(f"the model has no output {name}: {_list(known)}", "outputs")


def _list(names: Any) -> str:
    return f"it has {', '.join(sorted(names))}"


def _refuse_unknown(request: InferenceRequest, known: Any) -> None:
    """Raises ApiError (400) for a parameter that might change the answer."""
    for name, value in request.parameters.items():
        if value is None or name in known or name in _IGNORED or name in ROUTING:
            continue
        raise _unknown(name, value)


def _unknown(name: str, value: Any) -> ApiError:
    if name.startswith("sequence_"):
        return unsupported(
            f"{name[:64]}: a single request has no sequence; use a stream",
            f"parameters.{name[:64]}",
        )
    return unsupported(
        f"parameters.{name[:64]} is not supported here: leave it out", f"parameters.{name[:64]}"
    )
