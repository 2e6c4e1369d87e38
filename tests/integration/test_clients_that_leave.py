"""A client that closes its connection frees its node, by whatever door it came: the job ends as
cancelled, far from the tokens that it asked for. Each test prints how long that took (`-s`)."""

import json
import queue
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from wsproto.events import AcceptConnection

from coordinator.gateway.grpc.wire import MESSAGES, SERVICE
from tests.capanode.sandbox_makers import working_sandboxes
from tests.integration.frail_market import CHAT, SOON_S, FrailMarket, chat_body
from tests.integration.stream_client import StreamClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not working_sandboxes(), reason="no isolation works here"),
]

# Many seconds of work.
TOKENS = 1_000
PARAMETERS = {"max_tokens": TOKENS, "ignore_eos": True}


def endings(frail: FrailMarket) -> dict[str, dict[str, Any]]:
    """How the nodes' jobs have ended, by job."""
    found = {}
    for node in frail.nodes:
        for line in frail.log_of(node).splitlines():
            if '"job_ended"' in line:
                event = json.loads(line)
                found[event["job_id"]] = event
    return found


@contextmanager
def connected(frail: FrailMarket) -> Iterator[socket.socket]:
    address = urlsplit(frail.market.http)
    with closing(
        socket.create_connection((address.hostname, address.port), timeout=SOON_S)
    ) as connection:
        yield connection


def post(frail: FrailMarket, connection: socket.socket, *, stream: bool) -> None:
    body = json.dumps(chat_body(**PARAMETERS, stream=stream)).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
        f"authorization: Bearer {frail.market.api_key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)


def wait_running(frail: FrailMarket) -> None:
    frail.wait(lambda: any(summary.running for summary in frail.summaries().values()))


def leave_events(frail: FrailMarket) -> None:
    with connected(frail) as connection:
        post(frail, connection, stream=True)
        while b'"content"' not in connection.recv(65_536):
            pass


def leave_whole_answer(frail: FrailMarket) -> None:
    with connected(frail) as connection:
        post(frail, connection, stream=False)
        wait_running(frail)


def leave_web_socket(frail: FrailMarket) -> None:
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["A story:"]}
    with connected(frail) as connection:
        client = StreamClient(connection, "/v1/stream", frail.market.api_key)
        assert isinstance(client.next(), AcceptConnection)
        client.say({"type": "open", "model": CHAT, "parameters": PARAMETERS})
        client.say({"type": "record", "inputs": [tensor]})
        while client.hear()["type"] != "prediction":
            pass


def text_request() -> Any:
    message = MESSAGES["ModelInferRequest"](model_name=CHAT)
    tensor = message.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"A story:")
    message.parameters["max_tokens"].int64_param = TOKENS
    message.parameters["ignore_eos"].bool_param = True
    return message


def leave_grpc_stream(frail: FrailMarket) -> None:
    sending: queue.Queue[Any] = queue.Queue()
    sending.put(text_request())
    with grpc.insecure_channel(frail.grpc_address) as channel:
        call = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=MESSAGES["ModelInferRequest"].SerializeToString,
            response_deserializer=MESSAGES["ModelStreamInferResponse"].FromString,
        )
        metadata = (("authorization", f"Bearer {frail.market.api_key}"),)
        next(call(iter(sending.get, None), metadata=metadata, timeout=SOON_S))
    sending.put(None)


def leave_grpc_call(frail: FrailMarket) -> None:
    with grpc.insecure_channel(frail.grpc_address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=MESSAGES["ModelInferRequest"].SerializeToString,
            response_deserializer=MESSAGES["ModelInferResponse"].FromString,
        )
        metadata = (("authorization", f"Bearer {frail.market.api_key}"),)
        running = call.future(text_request(), metadata=metadata, timeout=SOON_S)
        wait_running(frail)
        running.cancel()


@pytest.mark.parametrize(
    "leave",
    [leave_events, leave_whole_answer, leave_web_socket, leave_grpc_stream, leave_grpc_call],
)
def test_a_client_that_leaves_frees_its_node(
    frail: FrailMarket, leave: Callable[[FrailMarket], None]
) -> None:
    before = endings(frail)
    leave(frail)
    left_at_s = time.time()
    frail.wait(lambda: len(endings(frail)) > len(before))
    (job_id,) = endings(frail).keys() - before.keys()
    ending = endings(frail)[job_id]
    ended_at_s = datetime.fromisoformat(ending["timestamp"]).timestamp()
    print(f"{leave.__name__}: the job ended {1_000 * (ended_at_s - left_at_s):.0f} ms later")
    # One that has not begun its answer is refused as cancelled, and free.
    assert "cancelled" in (ending["finish"], ending["code"]), ending
    assert ending["output_tokens"] < TOKENS / 2
    frail.wait(lambda: not any(summary.running for summary in frail.summaries().values()))


def test_a_client_that_leaves_within_its_upload_buys_nothing(frail: FrailMarket) -> None:
    before = endings(frail), frail.rows("SELECT count(*) FROM leases")
    with connected(frail) as connection:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
            f"authorization: Bearer {frail.market.api_key}\r\n"
            "content-type: application/json\r\ncontent-length: 100000\r\n\r\n"
        )
        connection.sendall(head.encode() + b'{"model": "')
    with frail.client() as http:
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200
    frail.wait(lambda: len(endings(frail)) == len(before[0]) + 1)
    ((leases,),) = before[1]
    assert frail.rows("SELECT count(*) FROM leases") == [(leases + 1,)]
