"""The gRPC server beside HTTP: keys, limits, deadlines and cancellation over real sockets.

What stock clients do with it is in `tests/clients/test_triton.py`.
"""

import queue
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from coordinator.buyer.errors import JobFailed
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.grpc.wire import MESSAGES, SERVICE
from protocol.errors import Code
from protocol.messages import Task
from protocol.tensors import TensorInput
from tests.coordinator.gateway.fake_market import API_KEY, LIMITED_KEY, NAMES, Script
from tests.integration.openai_api import WITHIN_S, Served, served_gateway

KEY = (("authorization", f"Bearer {API_KEY}"),)


@contextmanager
def calling(served: Served, name: str) -> Iterator[Any]:
    """A call of one name."""
    with grpc.insecure_channel(served.grpc_address) as channel:
        is_stream = name == "ModelStreamInfer"
        make = channel.stream_stream if is_stream else channel.unary_unary
        request = MESSAGES["ModelInferRequest" if is_stream else f"{name}Request"]
        response = MESSAGES[f"{name}Response"]
        yield make(
            f"/{SERVICE}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )


def rows(*numbers: float, model: str = NAMES[Task.TENSOR], **parameters: str) -> Any:
    message = MESSAGES["ModelInferRequest"](model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=[len(numbers) // 2, 2])
    message.raw_input_contents.append(struct.pack(f"<{len(numbers)}f", *numbers))
    for name, value in parameters.items():
        message.parameters[name].string_param = value
    return message


def text_request() -> Any:
    message = MESSAGES["ModelInferRequest"](model_name=NAMES[Task.CAUSAL_LM])
    tensor = message.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"hello")
    return message


@pytest.fixture
def served() -> Iterator[Served]:
    with served_gateway() as running:
        yield running


def refusal(call: Any, request: Any, **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=options.pop("timeout", WITHIN_S), **options)
    return raised.value


def test_contents_and_trailers_are_those_of_the_protocol(served: Served) -> None:
    message = MESSAGES["ModelInferRequest"](model_name=NAMES[Task.TENSOR], id="9")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1, 2.5])
    message.outputs.add(name="sum")
    with calling(served, "ModelInfer") as call:
        answer, done = call.with_call(message, metadata=KEY, timeout=WITHIN_S)
    assert (answer.id, [output.name for output in answer.outputs]) == ("9", ["sum"])
    assert struct.unpack("<f", answer.raw_output_contents[0]) == (3.5,)
    trailers = dict(done.trailing_metadata())
    assert trailers["x-capacloud-amount-nano"] == "2"
    assert trailers["x-capacloud-node"]


def test_a_wrong_key_is_refused_before_the_message(served: Served) -> None:
    with calling(served, "ModelInfer") as call:
        huge = rows(*[1.0] * 1_000_000)
        error = refusal(call, huge, metadata=(("authorization", "Bearer nobody"),))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not served.market.specs


def test_a_key_has_one_rate_over_all_doors(served: Served) -> None:
    limited = (("authorization", f"Bearer {LIMITED_KEY}"),)
    with calling(served, "ModelInfer") as call:
        for _ in range(2):
            call(rows(1, 2), metadata=limited, timeout=WITHIN_S)
        error = refusal(call, rows(1, 2), metadata=limited)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())["retry-after-ms"]) > 0


def test_a_message_that_is_too_large_is_refused() -> None:
    config = GatewayConfig(port=0, grpc_port=0, body_bytes_max=10_000)
    with served_gateway(config) as served, calling(served, "ModelInfer") as call:
        error = refusal(call, rows(*[1.0] * 5_000), metadata=KEY)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_cancelled_call_and_one_past_its_deadline_cancel_their_jobs(served: Served) -> None:
    served.market.script = Script(gate_before=0)
    with calling(served, "ModelInfer") as call:
        running = call.future(rows(1, 2), metadata=KEY, timeout=WITHIN_S)
        served.wait(served.market.waiting)
        running.cancel()
        served.wait(served.market.cancellation)
        assert served.market.cancelled == 1
        error = refusal(call, rows(1, 2), metadata=KEY, timeout=0.2)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_client_that_leaves_a_stream_cancels_its_job(served: Served) -> None:
    served.market.script = Script(gate_before=1)
    sending: queue.Queue[Any] = queue.Queue()
    sending.put(text_request())
    with calling(served, "ModelStreamInfer") as call:
        stream = call(iter(sending.get, None), metadata=KEY, timeout=WITHIN_S)
        first = next(stream)
        assert first.infer_response.outputs[0].name == "text_output"
        stream.cancel()
        served.wait(served.market.cancellation)
        sending.put(None)


def test_a_stream_that_loses_its_market_ends_with_a_status(served: Served) -> None:
    served.market.hidden.add(NAMES[Task.TENSOR])
    with calling(served, "ModelStreamInfer") as call:
        (answer,) = call(iter([rows(1, 2)]), metadata=KEY, timeout=WITHIN_S)
    assert answer.error_message == "no node offers 'tiny-sums' now"


def test_a_server_that_stops_lets_calls_end(served: Served) -> None:
    served.market.script = Script(gate_before=0)
    found: list[Any] = []
    with calling(served, "ModelInfer") as call:

        def ask() -> None:
            found.append(call(rows(1, 2), metadata=KEY, timeout=WITHIN_S))

        asking = threading.Thread(target=ask)
        asking.start()
        served.wait(served.market.waiting)
        served.stop()
        served.in_trio(served.market.gate.set)
        asking.join(WITHIN_S)
    (answer,) = found
    assert answer.outputs[0].name == "sum"


def keyed(key: str) -> Any:
    return (*KEY, ("idempotency-key", key))


def test_a_call_that_is_sent_again_is_bought_once(served: Served) -> None:
    with calling(served, "ModelInfer") as call:
        first, done = call.with_call(rows(1, 2), metadata=keyed("k"), timeout=WITHIN_S)
        again, replayed = call.with_call(rows(1, 2), metadata=keyed("k"), timeout=WITHIN_S)
        assert again == first
        assert len(served.market.specs) == 1
        trailers, told = dict(done.trailing_metadata()), dict(replayed.trailing_metadata())
        assert "idempotent-replayed" not in trailers
        assert told == trailers | {"idempotent-replayed": "true"}
        other = refusal(call, rows(1, 3), metadata=keyed("k"))
        assert other.code() is grpc.StatusCode.ALREADY_EXISTS
        assert "another request was sent with this Idempotency-Key" in other.details()
        call(rows(1, 2), metadata=keyed("k2"), timeout=WITHIN_S)
    assert len(served.market.specs) == 2


def test_a_call_whose_client_left_is_finished_for_its_key(served: Served) -> None:
    served.market.script = Script(gate_before=0)
    with calling(served, "ModelInfer") as call:
        running = call.future(rows(1, 2), metadata=keyed("k"), timeout=WITHIN_S)
        served.wait(served.market.waiting)
        running.cancel()
        following = call.future(rows(1, 2), metadata=keyed("k"), timeout=WITHIN_S)
        served.in_trio(served.market.gate.set)
        assert struct.unpack("<f", following.result().raw_output_contents[0]) == (3.0,)
    assert (len(served.market.specs), served.market.cancelled) == (1, 0)


def test_a_failure_that_was_free_gives_its_key_free(served: Served) -> None:
    served.market.hidden.add(NAMES[Task.TENSOR])
    with calling(served, "ModelInfer") as call:
        assert refusal(call, rows(1, 2), metadata=keyed("k")).code() is grpc.StatusCode.NOT_FOUND
        served.market.hidden.clear()
        call(rows(1, 2), metadata=keyed("k"), timeout=WITHIN_S)


def test_a_failure_that_was_paid_for_is_not_bought_again(served: Served) -> None:
    paid = JobFailed("it broke off", code=Code.NODE_LOST, amount_nano=5)
    served.market.script = Script(failure=paid)
    with calling(served, "ModelInfer") as call:
        first = refusal(call, rows(1, 2), metadata=keyed("k"))
        again = refusal(call, rows(1, 2), metadata=keyed("k"))
    assert (again.code(), again.details()) == (first.code(), first.details())
    assert len(served.market.specs) == 1


def test_a_stream_takes_no_key(served: Served) -> None:
    with calling(served, "ModelStreamInfer") as call:
        stream = call(iter([rows(1, 2)]), metadata=keyed("k"), timeout=WITHIN_S)
        with pytest.raises(grpc.RpcError) as raised:
            next(stream)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not served.market.specs


def test_a_stream_goes_on_from_the_records_before_a_break(served: Served) -> None:
    context = rows(1, 2, 3, 4)
    context.parameters["capacloud_context"].bool_param = True
    with calling(served, "ModelStreamInfer") as call:
        (answer,) = call(iter([context, rows(5, 6)]), metadata=KEY, timeout=WITHIN_S)
    assert struct.unpack("<f", answer.infer_response.raw_output_contents[0]) == (11.0,)
    (spec,) = served.market.specs
    assert isinstance(spec.job_input, TensorInput)
    assert spec.job_input.context_rows == 2
