"""The Open Inference Protocol over HTTP: JSON, the binary extension, errors in its own shape."""

import json
import struct
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.buyer.errors import JobFailed
from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.oip.reading import read_body
from protocol.errors import Code
from protocol.generation import GenerationInput
from protocol.messages import DataCollection, Task
from protocol.payload import EmbeddingInput, ImageInput
from protocol.tensors import Datatype, NamedTensor, TensorInput, join_strings, split_strings
from tests.coordinator.gateway.fake_market import DIGESTS, NAMES, NOW_MS, OTHER_KEY, VECTOR, Script
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_images import PNG

LENGTH = "inference-header-content-length"
SUMS = f"/v2/models/{NAMES[Task.TENSOR]}"
ROWS: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4.5]}


def raw(request: dict[str, Any], *parts: bytes) -> dict[str, Any]:
    head = json.dumps(request).encode()
    return {"content": head + b"".join(parts), "headers": {LENGTH: str(len(head))}}


def outputs(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def asked(gateway: Harness) -> Any:
    (spec,) = gateway.market.specs
    return spec.job_input


# Metadata.


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        (f"{SUMS}/ready", {"name": "tiny-sums", "ready": True}),
    ],
)
def test_health_and_readiness(gateway: Harness, path: str, body: object) -> None:
    answer = gateway.get(path)
    assert (answer.status_code, answer.json()) == (200, body)


def test_a_market_without_nodes_is_not_ready(gateway: Harness) -> None:
    gateway.market.nodes = 0
    assert gateway.get("/v2/health/ready").status_code == 503
    assert gateway.get(f"{SUMS}/ready").json() == {"name": "tiny-sums", "ready": False}


def test_strangers_see_health_and_the_server_and_nothing_else(gateway: Harness) -> None:
    nobody = {"headers": {"authorization": ""}}
    assert gateway.get("/v2", **nobody).json()["extensions"] == ["binary_tensor_data", "statistics"]
    assert gateway.get("/v2/health/live", **nobody).status_code == 200
    refused = gateway.get(SUMS, **nobody)
    assert refused.status_code == 401
    assert list(refused.json()) == ["error"]
    assert type(refused.json()["error"]) is str


def test_a_provider_that_is_no_json_is_told_by_its_name(gateway: Harness) -> None:
    refused = gateway.post(f"{SUMS}/infer", {"inputs": [ROWS], "parameters": {"provider": "{"}})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("parameters.provider is not valid JSON")


def test_statistics_are_of_the_account_and_of_one_model(gateway: Harness) -> None:
    chat = {"model": NAMES[Task.CAUSAL_LM], "prompt": "hi"}
    assert gateway.post("/v1/completions", chat).status_code == 200
    assert gateway.post("/v1/completions", chat | {"model": "nowhere"}).status_code == 404
    gateway.market.script = Script(failure=JobFailed("no", code=Code.BUSY))
    by_digest = chat | {"model": DIGESTS[Task.CAUSAL_LM]}
    assert gateway.post("/v1/completions", by_digest).status_code == 429
    path = f"/v2/models/{NAMES[Task.CAUSAL_LM]}/stats"
    (found,) = gateway.get(path).json()["model_stats"]
    assert (found["name"], found["inference_count"]) == (NAMES[Task.CAUSAL_LM], 1)
    assert found["last_inference"] == NOW_MS
    times = found["inference_stats"]
    assert [times[name]["count"] for name in ("success", "fail", "queue")] == [1, 1, 1]
    # As the scripted receipt says it.
    assert (times["queue"]["ns"], times["compute_infer"]["ns"]) == (3_000_000, 6_000_000)
    everything = gateway.get("/v2/models/stats").json()["model_stats"]
    assert sorted(model["inference_count"] for model in everything) == [0, 0, 0, 1]
    version = DIGESTS[Task.CAUSAL_LM][:16]
    assert gateway.get(f"/v2/models/{NAMES[Task.CAUSAL_LM]}/versions/{version}/stats").json() == {
        "model_stats": [found]
    }
    others = {"authorization": f"Bearer {OTHER_KEY}"}
    (of_another,) = gateway.get(path, headers=others).json()["model_stats"]
    assert of_another["inference_count"] == 0
    assert gateway.get("/v2/models/none/stats").status_code == 404


def test_a_model_says_what_it_takes_and_answers(gateway: Harness) -> None:
    version = DIGESTS[Task.TENSOR][:16]
    wanted = {
        "name": "tiny-sums",
        "versions": [version],
        "platform": "capacloud_tensor",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [-1]},
            {"name": "name", "datatype": "BYTES", "shape": [-1]},
        ],
    }
    assert gateway.get(SUMS).json() == wanted
    assert gateway.get(f"{SUMS}/versions/{version}").json() == wanted
    assert gateway.get(f"{SUMS}/versions/1").status_code == 404
    assert gateway.get("/v2/models/none").json()["error"] == "no node offers 'none' now"
    # A name may have slashes.
    assert gateway.get("/v2/models/tiny/classifier").json()["inputs"][0]["name"] == "image"


# Tensors.


def test_json_in_and_out(gateway: Harness) -> None:
    answer = gateway.post(f"{SUMS}/infer", {"id": "7", "inputs": [ROWS]})
    assert outputs(answer) == {"sum": [3.0, 7.5], "name": ["3", "7.5"]}
    assert answer.json()["id"] == "7"
    assert answer.json()["model_name"] == "tiny-sums"
    assert answer.headers["x-capacloud-amount-nano"] == "4"
    tensor = NamedTensor("x", Datatype.FP32, (2, 2), struct.pack("<4f", 1, 2, 3, 4.5))
    assert asked(gateway) == TensorInput((tensor,))


def test_nested_rows_and_some_outputs(gateway: Harness) -> None:
    nested = ROWS | {"data": [[1, 2], [3, 4.5]]}
    answer = gateway.post(f"{SUMS}/infer", {"inputs": [nested], "outputs": [{"name": "sum"}]})
    assert outputs(answer) == {"sum": [3.0, 7.5]}


def test_raw_bytes_in_and_out_without_a_content_type(gateway: Harness) -> None:
    """As tritonclient sends it."""
    data = struct.pack("<4f", 1, 2, 3, 4.5)
    request = {
        "inputs": [
            {k: ROWS[k] for k in ("name", "datatype", "shape")}
            | {"parameters": {"binary_data_size": len(data)}}
        ],
        "parameters": {"binary_data_output": True},
    }
    answer = gateway.request("POST", f"{SUMS}/infer", **raw(request, data))
    assert answer.status_code == 200
    length = int(answer.headers[LENGTH])
    head, body = json.loads(answer.content[:length]), answer.content[length:]
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    assert sum(sizes) == len(body)
    assert struct.unpack("<2f", body[: sizes[0]]) == (3.0, 7.5)
    assert split_strings(body[sizes[0] :]) == (b"3", b"7.5")


def test_each_output_may_be_raw_or_not(gateway: Harness) -> None:
    request = {
        "inputs": [ROWS],
        "outputs": [{"name": "name"}, {"name": "sum", "parameters": {"binary_data": True}}],
    }
    answer = gateway.post(f"{SUMS}/infer", request)
    length = int(answer.headers[LENGTH])
    name, total = json.loads(answer.content[:length])["outputs"]
    assert name["data"] == ["3", "7.5"]
    assert total["parameters"] == {"binary_data_size": 8}
    assert struct.unpack("<2f", answer.content[length:]) == (3.0, 7.5)


def test_routing_comes_as_a_parameter_and_a_version_pins_the_model(gateway: Harness) -> None:
    request = {
        "inputs": [ROWS],
        "parameters": {"provider": json.dumps({"data_collection": "deny"}), "priority": 3},
    }
    version = DIGESTS[Task.TENSOR][:16]
    answer = gateway.post(f"{SUMS}/versions/{version}/infer", request)
    assert outputs(answer)["sum"] == [3.0, 7.5]
    (spec,) = gateway.market.specs
    assert spec.model == DIGESTS[Task.TENSOR]
    assert spec.constraints.data_collection is DataCollection.DENY


# Other models.


def test_prompts_are_answered_one_by_one(gateway: Harness) -> None:
    prompts = {"name": "text_input", "datatype": "BYTES", "shape": [2], "data": ["one", "two"]}
    parameters = {"max_tokens": 9, "temperature": 0, "stop": "x"}
    answer = gateway.post(
        "/v2/models/tiny-chat/infer", {"inputs": [prompts], "parameters": parameters}
    )
    text = "".join(gateway.market.script.tokens)
    assert outputs(answer) == {"text_output": [text, text]}
    inputs = [spec.job_input for spec in gateway.market.specs]
    assert {i.prompt for i in inputs if isinstance(i, GenerationInput)} == {"one", "two"}
    first = inputs[0]
    assert isinstance(first, GenerationInput)
    assert (first.max_tokens, first.temperature, first.stop) == (9, 0, ("x",))


def test_texts_become_vectors(gateway: Harness) -> None:
    texts = {"name": "text_input", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
    answer = gateway.post("/v2/models/tiny-embedder/infer", {"inputs": [texts]})
    assert outputs(answer) == {"embedding": [*VECTOR, *VECTOR]}
    assert answer.json()["outputs"][0]["shape"] == [2, len(VECTOR)]
    assert asked(gateway) == EmbeddingInput(("a", "b"))


def test_pictures_become_labels(gateway: Harness) -> None:
    strings = join_strings([PNG, PNG])
    request = {
        "inputs": [
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [2],
                "parameters": {"binary_data_size": len(strings)},
            }
        ],
        "parameters": {"top_k": 1},
    }
    path = "/v2/models/tiny/classifier/infer"
    answer = gateway.request("POST", path, **raw(request, strings))
    assert outputs(answer) == {"label": ["military uniform"] * 2, "score": [0.75] * 2}
    assert [spec.job_input for spec in gateway.market.specs] == [ImageInput(PNG, 1)] * 2


def test_pixels_become_a_picture(gateway: Harness) -> None:
    pixels = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [2, 1, 3],
        "data": [255, 0, 0, 0, 0, 255],
    }
    answer = gateway.post("/v2/models/tiny/classifier/infer", {"inputs": [pixels]})
    assert answer.status_code == 200
    job_input = asked(gateway)
    assert isinstance(job_input, ImageInput)
    assert job_input.image.startswith(b"\x89PNG")


# What is wrong.


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "you must give inputs"),
        ({"inputs": []}, "inputs is empty"),
        ({"inputs": [ROWS, ROWS]}, "named twice"),
        ({"inputs": [{**ROWS, "name": "y"}]}, "the model's input x is missing"),
        ({"inputs": [{**ROWS, "datatype": "FP33"}]}, "datatype is one of"),
        ({"inputs": [{**ROWS, "datatype": "INT32", "data": [1, 2, 3, 4]}]}, "the model takes FP32"),
        ({"inputs": [{**ROWS, "shape": [4, 1]}]}, "the model takes FP32 [-1, 2]"),
        ({"inputs": [{**ROWS, "shape": [2, 3]}]}, "4 elements, and its shape 6"),
        ({"inputs": [{**ROWS, "shape": [0, 2]}]}, "no size of a dimension"),
        ({"inputs": [{**ROWS, "shape": [2.0, 2]}]}, "no size of a dimension"),
        ({"inputs": [{**ROWS, "shape": [1] * 9}]}, "at most 8 items"),
        ({"inputs": [{**ROWS, "data": ["a", 2, 3, 4]}]}, "must be numbers"),
        ({"inputs": [{**ROWS, "data": None}]}, "you must give inputs[0].data"),
        ({"inputs": [{**ROWS, "parameters": {"binary_data_size": 16}}]}, "give one"),
        ({"inputs": ["x"]}, "inputs[0] must be an object"),
        ({"inputs": [ROWS], "outputs": [{"name": "none"}]}, "the model has no output none"),
        ({"inputs": [ROWS], "outputs": [{"name": "sum"}] * 2}, "named twice"),
        ({"inputs": [ROWS], "id": 7}, "id must be text"),
        ({"inputs": [ROWS], "parameters": {"temperature": 1}}, "temperature is not supported"),
        ({"inputs": [ROWS], "parameters": {"sequence_id": 4}}, "use a stream"),
        ({"inputs": [ROWS], "parameters": {"provider": "{"}}, "not valid JSON"),
        ({"inputs": [ROWS], "parameters": {"provider": {"nodes": []}}}, "provider.nodes"),
    ],
)
def test_what_is_wrong_is_named(gateway: Harness, request_: Any, words: str) -> None:
    answer = gateway.post(f"{SUMS}/infer", request_)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert not gateway.market.specs


@pytest.mark.parametrize(
    ("length", "size"),
    [
        ("-1", 16),
        ("0", 16),
        ("abc", 16),
        ("1e3", 16),
        ("9" * 30, 16),
        ("99999", 16),
        ("", 16),
        (None, 17),
        (None, 15),
        (None, -1),
        (None, 2**70),
        (None, 16.0),
        (None, True),
        (None, "16"),
    ],
)
def test_lengths_that_cannot_be_are_refused(gateway: Harness, length: Any, size: Any) -> None:
    tensor = {k: ROWS[k] for k in ("name", "datatype", "shape")}
    sent = raw({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}, bytes(16))
    if length is not None:
        sent["headers"][LENGTH] = length
    answer = gateway.request("POST", f"{SUMS}/infer", **sent)
    assert answer.status_code == 400, answer.text
    assert type(answer.json()["error"]) is str


@given(
    length=st.one_of(st.none(), st.text(max_size=12), st.integers(-5, 300).map(str)),
    sizes=st.lists(
        st.one_of(st.integers(-4, 40), st.sampled_from([2**31, 2**63, 2**70])), max_size=4
    ),
    tail=st.binary(max_size=48),
    datatype=st.sampled_from([*Datatype, "FP33"]),
    shape=st.lists(st.integers(-2, 2**33), max_size=9),
)
@settings(max_examples=300, deadline=None)
def test_fuzzed_headers_are_read_or_refused(
    length: Any, sizes: Any, tail: bytes, datatype: Any, shape: Any
) -> None:
    request = {
        "inputs": [
            {
                "name": f"x{number}",
                "datatype": str(datatype),
                "shape": shape,
                "parameters": {"binary_data_size": size},
            }
            for number, size in enumerate(sizes)
        ]
    }
    head = json.dumps(request).encode()
    try:
        read = read_body(
            head + tail, str(len(head)) if length is None else length, model="m", version=""
        )
    except ApiError as refusal:
        status = refusal.problem.status
    else:
        status = 200
        assert sum(len(tensor.data) for tensor in read.request.inputs) == len(tail)
    assert status in (200, 400, 413)


def test_a_failure_of_the_market_has_the_protocols_shape(gateway: Harness) -> None:
    gateway.market.hidden.add(NAMES[Task.TENSOR])
    answer = gateway.post(f"{SUMS}/infer", {"inputs": [ROWS]})
    assert (answer.status_code, list(answer.json())) == (404, ["error"])
