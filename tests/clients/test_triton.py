"""Triton's own client, over HTTP and gRPC, against a scripted market."""

import pytest

from protocol.messages import Task
from tests.clients.environments import run_python
from tests.clients.saying import TEXT, say_text
from tests.coordinator.gateway.fake_market import NAMES
from tests.integration.openai_api import Served

pytestmark = pytest.mark.slow

SUMS = NAMES[Task.TENSOR]
RECORDS = 200


def test_triton_infers_over_http(served: Served) -> None:
    found = run_python("triton", "triton_http.py", served.api, SUMS)
    assert found["live"] == [True, True]
    assert found["ready"] is True
    assert found["extensions"] == ["binary_tensor_data", "statistics"]
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert found["raw"] == {"sum": [3.0, 7.5], "name": ["3", "7.5"], "id": "7"}
    (statistics,) = found["statistics"]
    assert (statistics["name"], statistics["inference_count"]) == (SUMS, 2)
    assert statistics["inference_stats"]["success"]["count"] == 2
    assert found["json"] == {"sum": [3.0, 7.5], "name": None, "id": "7"}
    assert found["wrong"] == ["400", "the model's input x is missing"]
    assert found["no key"] == "401"
    assert found["no model"] == ["404", "no node offers 'none' now"]


def test_triton_infers_and_streams_over_grpc(served: Served) -> None:
    say_text(served)
    arguments = (SUMS, served.grpc_address, str(RECORDS))
    found = run_python("triton", "triton_grpc.py", served.api, *arguments)
    assert found["live"] == [True, True]
    assert found["ready"] is True
    assert found["inputs"] == [["x", "FP32", [-1, 2]]]
    assert found["config"] == [SUMS, 11, [-1, 2]]
    assert [SUMS, "READY"] in found["index"]
    assert found["statistics"] == [[SUMS, 1, 1]]
    assert (found["sum"], found["name"], found["id"]) == ([3.0, 7.5], ["3", "7.5"], "7")
    assert found["wrong"] == ["StatusCode.INVALID_ARGUMENT", "the model's input x is missing"]
    assert found["no key"] == "StatusCode.UNAUTHENTICATED"
    assert found["no model"] == ["StatusCode.NOT_FOUND", "no node offers 'none' now"]
    assert found["stream"] == [[str(n), [n + 1.0]] for n in range(RECORDS)]
    error = found["stream with an error"][1]
    assert error == "the model's input x is missing"
    assert found["stream with an error"][::2] == [["0", [2.0]], ["2", [4.0]]]
    assert "".join(found["text"]) == TEXT
    assert len(found["text"]) > 1
    # Records that waited together became one job, and each is metered once.
    tensors = [spec.units_max.tensor_elements for spec in served.market.specs]
    assert sum(tensors) == 2 * (2 + RECORDS + 2)
