"""Writing inference answers and metadata: JSON, and behind it the outputs that are wanted raw."""

from dataclasses import dataclass
from typing import Any

from coordinator.buyer.tensor_json import numbers_of
from coordinator.gateway.errors import Headers, invalid
from coordinator.gateway.http.oip.reading import ReadRequest
from coordinator.gateway.http.oip.shapes import ModelMetadata, PlainTensor
from coordinator.gateway.http.responses import JSON_TYPE, Response, header, to_json
from coordinator.gateway.inference.messages import InferenceAnswer
from coordinator.gateway.inference.models import platform_of, signature_of, version_of
from coordinator.gateway.market_side.market import ModelInfo
from protocol.tensors import NamedTensor, TensorMetadata

_RAW_TYPE = b"application/octet-stream"


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """A body, and the length of its JSON if raw tensors follow."""

    body: bytes
    json_bytes: int | None

    def response(self, headers: Headers) -> Response:
        if self.json_bytes is None:
            return Response(200, self.body, JSON_TYPE, headers=headers)
        length = header("Inference-Header-Content-Length", self.json_bytes)
        return Response(200, self.body, _RAW_TYPE, headers=(length, *headers))


def write_answer(asked: ReadRequest, answer: InferenceAnswer) -> WrittenAnswer:
    """Raises ApiError (400) for strings that JSON cannot carry."""
    raw: list[bytes] = []
    plain = {
        "model_name": answer.model,
        "model_version": answer.version,
        "id": answer.id,
        "outputs": [_output(tensor, asked, raw) for tensor in answer.outputs],
    }
    head = to_json(plain)
    return WrittenAnswer(head + b"".join(raw), len(head) if raw else None)


def _output(tensor: NamedTensor, asked: ReadRequest, raw: list[bytes]) -> dict[str, Any]:
    if tensor.name in asked.binary or (not asked.request.outputs and asked.all_binary):
        raw.append(tensor.data)
        return _head(tensor) | {"parameters": {"binary_data_size": len(tensor.data)}}
    return output_plain(tensor)


def output_plain(tensor: NamedTensor) -> dict[str, Any]:
    """In JSON. Raises ApiError (400)."""
    try:
        return _head(tensor) | {"data": numbers_of(tensor)}
    except UnicodeDecodeError:
        raise invalid(
            f"output {tensor.name} is not UTF-8, which JSON needs: ask for binary_data", "outputs"
        ) from None


def _head(tensor: NamedTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype.value,
        "shape": list(tensor.shape),
    }


def metadata_plain(model: ModelInfo) -> ModelMetadata:
    signature = signature_of(model)
    return {
        "name": model.name,
        "versions": [version_of(model)],
        "platform": platform_of(model),
        "inputs": [_tensor(tensor) for tensor in signature.inputs] if signature else [],
        "outputs": [_tensor(tensor) for tensor in signature.outputs] if signature else [],
    }


def _tensor(tensor: TensorMetadata) -> PlainTensor:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype.value,
        "shape": list(tensor.shape),
    }
