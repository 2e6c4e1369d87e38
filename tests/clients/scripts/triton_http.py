"""tritonclient over HTTP: raw and JSON tensors, metadata, errors."""

import json
import sys

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

url, key, _, model = sys.argv[1:5]
client = InferenceServerClient(url.removeprefix("http://"))
# Each call gets a copy: the client adds the length of its own request to what it is given.
headers = {"authorization": f"Bearer {key}"}


def infer(*, binary: bool) -> dict[str, object]:
    tensor = InferInput("x", [2, 2], "FP32")
    tensor.set_data_from_numpy(np.array([[1, 2], [3, 4.5]], np.float32), binary_data=binary)
    outputs = None if binary else [InferRequestedOutput("sum", binary_data=False)]
    answer = client.infer(model, [tensor], outputs=outputs, headers=dict(headers), request_id="7")
    names = answer.as_numpy("name")
    return {
        "sum": answer.as_numpy("sum").tolist(),
        "name": None if names is None else [name.decode() for name in names],
        "id": answer.get_response()["id"],
    }


def refused(call, *arguments: object, **named: object) -> list[str]:
    try:
        call(*arguments, **named)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["200", ""]


wrong = InferInput("y", [1, 2], "FP32")
wrong.set_data_from_numpy(np.zeros((1, 2), np.float32))
print(
    json.dumps(
        {
            "live": [client.is_server_live(), client.is_server_ready()],
            "ready": client.is_model_ready(model, headers=headers),
            "extensions": client.get_server_metadata()["extensions"],
            "inputs": client.get_model_metadata(model, headers=headers)["inputs"],
            "raw": infer(binary=True),
            "json": infer(binary=False),
            "statistics": client.get_inference_statistics(model, headers=headers)["model_stats"],
            "wrong": refused(client.infer, model, [wrong], headers=dict(headers)),
            "no key": refused(client.infer, model, [wrong])[0],
            "no model": refused(client.get_model_metadata, "none", headers=headers),
        }
    )
)
