"""From a ModelInferRequest to an inference request, and from an answer to a ModelInferResponse."""

from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.buyer.tensor_json import tensor_of_plain
from coordinator.gateway.errors import invalid
from coordinator.gateway.grpc.wire import MESSAGES
from coordinator.gateway.inference.messages import (
    ID_CHARS_MAX,
    PARAMETERS_MAX,
    InferenceAnswer,
    InferenceRequest,
)
from protocol.limits import TENSORS_MAX
from protocol.tensors import Datatype, NamedTensor, join_strings

# Where `contents` has the elements of each datatype. FP16 and BF16 travel raw only.
_CONTENTS = {
    Datatype.BOOL: "bool_contents",
    Datatype.INT8: "int_contents",
    Datatype.INT16: "int_contents",
    Datatype.INT32: "int_contents",
    Datatype.INT64: "int64_contents",
    Datatype.UINT8: "uint_contents",
    Datatype.UINT16: "uint_contents",
    Datatype.UINT32: "uint_contents",
    Datatype.UINT64: "uint64_contents",
    Datatype.FP32: "fp32_contents",
    Datatype.FP64: "fp64_contents",
    Datatype.BYTES: "bytes_contents",
}


def read_infer_request(message: Any) -> InferenceRequest:
    """Raises ApiError (400)."""
    if not 0 < len(message.inputs) <= TENSORS_MAX or len(message.outputs) > TENSORS_MAX:
        raise invalid(f"a request has 1 to {TENSORS_MAX} inputs, and no more outputs", "inputs")
    if len(message.id) > ID_CHARS_MAX:
        raise invalid(f"id has at most {ID_CHARS_MAX} characters", "id")
    raw: Sequence[bytes] = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise invalid("raw_input_contents has not one item for each input", "raw_input_contents")
    inputs = tuple(
        _read_tensor(tensor, raw[number] if raw else None)
        for number, tensor in enumerate(message.inputs)
    )
    outputs = tuple(output.name for output in message.outputs)
    if len(set(outputs)) != len(outputs):
        raise invalid("an output is named twice", "outputs")
    for output in message.outputs:
        if "classification" in output.parameters:
            raise invalid("classification is not supported: ask for scores", "outputs")
    return InferenceRequest(
        model=message.model_name,
        inputs=inputs,
        outputs=outputs,
        parameters=_read_parameters(message.parameters),
        version=message.model_version,
        id=message.id,
    )


def _read_tensor(tensor: Any, raw: bytes | None) -> NamedTensor:
    path = f"inputs.{tensor.name[:64]}"
    shape = tuple(tensor.shape)
    if tensor.datatype not in set(Datatype):
        raise invalid(f"{path} has no datatype that there is", path)
    datatype = Datatype(tensor.datatype)
    try:
        if raw is not None:
            if tensor.HasField("contents"):
                raise ValueError("it has contents and raw_input_contents: give one")
            return NamedTensor(tensor.name, datatype, shape, raw)
        if datatype not in _CONTENTS:
            raise ValueError(f"{datatype} travels in raw_input_contents only")
        if any(size < 1 for size in shape):
            raise ValueError("a dimension is below 1")
        elements = list(getattr(tensor.contents, _CONTENTS[datatype]))
        if datatype is Datatype.BYTES:
            return NamedTensor(tensor.name, datatype, shape, join_strings(elements))
        return tensor_of_plain(tensor.name, datatype, shape, elements)
    except ValueError as error:
        raise invalid(f"{path}: {error}", path) from None


def _read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    if len(parameters) > PARAMETERS_MAX:
        raise invalid(f"a request has at most {PARAMETERS_MAX} parameters", "parameters")
    found = {}
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        found[name] = None if kind is None else getattr(value, kind)
    return found


def write_infer_response(answer: InferenceAnswer, **parameters: Any) -> Any:
    """Outputs are raw, as Triton sends them."""
    response = MESSAGES["ModelInferResponse"](
        model_name=answer.model, model_version=answer.version, id=answer.id
    )
    for tensor in answer.outputs:
        response.outputs.add(
            name=tensor.name, datatype=tensor.datatype.value, shape=list(tensor.shape)
        )
        response.raw_output_contents.append(tensor.data)
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(response.parameters[name], kind, value)
    return response
