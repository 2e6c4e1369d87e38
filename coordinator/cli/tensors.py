"""`coordinator submit` for tensor models: the JSON of the Open Inference Protocol, in and out."""

import json
from typing import Any

from coordinator.buyer.tensor_json import numbers_of, tensor_of_plain
from protocol.codec import decode
from protocol.payload import Chunk
from protocol.programs.output import print_table
from protocol.tensors import Datatype, TensorInput, TensorOutput

# Enough of a tensor to see what it is.
_ELEMENTS_SHOWN = 8


def read_tensors(content: bytes) -> TensorInput:
    """`{"inputs": [{"name", "datatype", "shape", "data"}], "outputs"?: [{"name"}]}`. Raises
    ValueError."""
    plain = json.loads(content)
    try:
        inputs = tuple(
            tensor_of_plain(t["name"], Datatype(t["datatype"]), tuple(t["shape"]), t["data"])
            for t in plain["inputs"]
        )
        outputs = tuple(output["name"] for output in plain.get("outputs", ()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no inference request: {error}") from None
    return TensorInput(inputs, outputs)


def tensors_result(chunks: list[Chunk]) -> dict[str, Any]:
    """Raises RemoteProtocolError, ValueError."""
    output = decode(TensorOutput, b"".join(chunk.data for chunk in chunks))
    return {
        "outputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype.value,
                "shape": list(tensor.shape),
                "data": numbers_of(tensor),
            }
            for tensor in output.outputs
        ]
    }


def show_tensors(result: dict[str, Any]) -> None:
    rows = []
    for tensor in result["outputs"]:
        shown = [_text(element) for element in tensor["data"][:_ELEMENTS_SHOWN]]
        more = " …" if len(tensor["data"]) > _ELEMENTS_SHOWN else ""
        rows.append((tensor["name"], tensor["datatype"], tensor["shape"], ", ".join(shown) + more))
    print_table(("output", "datatype", "shape", "elements"), rows)


def _text(element: object) -> str:
    return f"{element:.6g}" if isinstance(element, float) else str(element)
