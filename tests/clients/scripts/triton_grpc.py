"""tritonclient over gRPC: unary calls, a stream of records, a text in pieces, errors."""

import json
import queue
import sys

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

_, key, text_model, model, address, records = sys.argv[1:7]
client = InferenceServerClient(address)
headers = {"authorization": f"Bearer {key}"}


def rows(*numbers: list[float]) -> InferInput:
    tensor = InferInput("x", [len(numbers), 2], "FP32")
    tensor.set_data_from_numpy(np.array(numbers, np.float32))
    return tensor


def refused(call, *arguments: object, **named: object) -> list[str]:
    try:
        call(*arguments, **named)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["OK", ""]


def streamed(requests: list[tuple[str, list[InferInput]]], final: int) -> list[object]:
    """Each answer, or the error, in the order in which they come."""
    found: queue.Queue[tuple[object, object]] = queue.Queue()
    heard: list[object] = []
    client.start_stream(lambda result, error: found.put((result, error)), headers=headers)
    for number, (name, inputs) in enumerate(requests):
        client.async_stream_infer(name, inputs, request_id=str(number))
    while final:
        result, error = found.get(timeout=20)
        if error is not None:
            heard.append(error.message())
            final -= 1
            continue
        response = result.get_response()
        final -= response.parameters["triton_final_response"].bool_param
        if name == text_model:
            heard.append(result.as_numpy("text_output")[0].decode())
        else:
            heard.append([response.id, result.as_numpy("sum").tolist()])
    client.stop_stream()
    return heard


answer = client.infer(model, [rows([1, 2], [3, 4.5])], headers=headers, request_id="7")
text = InferInput("text_input", [1], "BYTES")
text.set_data_from_numpy(np.array([b"hello"], object))
config = client.get_model_config(model, headers=headers).config
wrong = InferInput("y", [1, 2], "FP32")
wrong.set_data_from_numpy(np.zeros((1, 2), np.float32))
count = int(records)
print(
    json.dumps(
        {
            "live": [client.is_server_live(), client.is_server_ready()],
            "ready": client.is_model_ready(model, headers=headers),
            "extensions": list(client.get_server_metadata().extensions),
            "inputs": [
                [t.name, t.datatype, list(t.shape)]
                for t in client.get_model_metadata(model, headers=headers).inputs
            ],
            "config": [config.name, config.input[0].data_type, list(config.input[0].dims)],
            "index": [
                [m.name, m.state] for m in client.get_model_repository_index(headers=headers).models
            ],
            "sum": answer.as_numpy("sum").tolist(),
            "name": [name.decode() for name in answer.as_numpy("name")],
            "id": answer.get_response().id,
            "statistics": [
                [m.name, m.inference_count, m.inference_stats.success.count]
                for m in client.get_inference_statistics(model, headers=headers).model_stats
            ],
            "wrong": refused(client.infer, model, [wrong], headers=headers),
            "no key": refused(client.infer, model, [rows([1, 2])])[0],
            "no model": refused(client.get_model_metadata, "none", headers=headers),
            "stream": streamed([(model, [rows([n, 1])]) for n in range(count)], count),
            "stream with an error": streamed(
                [(model, [rows([1, 1])]), (model, [wrong]), (model, [rows([2, 2])])], 3
            ),
            "text": streamed([(text_model, [text])], 1),
        }
    )
)
