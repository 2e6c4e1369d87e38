"""`/v1/stream` over a real socket: the handshake, large and many messages, and the end.

What a stream answers is tested in `tests/coordinator/gateway/test_streams.py`.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest
from wsproto.events import AcceptConnection, Pong, RejectConnection, TextMessage
from wsproto.extensions import Extension, PerMessageDeflate

from protocol.messages import Task
from tests.coordinator.gateway.fake_market import API_KEY, NAMES
from tests.integration.openai_api import Served, served_gateway
from tests.integration.stream_client import StreamClient

OPEN = {"type": "open", "model": NAMES[Task.TENSOR], "outputs": ["sum"]}


def record(*rows: list[float]) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": list(rows)}
    return {"type": "record", "inputs": [tensor]}


@contextmanager
def connected(
    served: Served,
    *,
    path: str = "/v1/stream",
    key: str = API_KEY,
    extensions: Sequence[Extension] = (),
) -> Iterator[StreamClient]:
    with closing(served.connect()) as connection:
        yield StreamClient(connection, path, key, extensions)


@contextmanager
def opened(served: Served) -> Iterator[StreamClient]:
    with connected(served) as client:
        assert isinstance(client.next(), AcceptConnection)
        client.say(OPEN)
        assert client.hear()["type"] == "opened"
        yield client


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with served_gateway() as running:
        yield running


def test_many_records_come_back_in_order(served: Served) -> None:
    count = 2_000
    messages = [record([n, 1]) for n in range(count)]
    with opened(served) as client:
        sending = threading.Thread(target=client.say, args=(*messages, {"type": "close"}))
        sending.start()
        for number in range(count):
            told = client.hear()
            assert (told["sequence"], told["outputs"][0]["data"]) == (number, [number + 1.0])
        assert client.hear()["records"] == count
        assert client.hear_close() == 1000
        sending.join()
    assert len(served.market.specs) < count / 4


def test_a_message_that_is_too_large_ends_the_connection(served: Served) -> None:
    with opened(served) as client:
        client.say(record(*[[1.0, 2.0]] * 120_000))
        assert client.hear_close() == 1009


def test_a_message_in_pieces_is_one_and_pings_between_them_are_answered(served: Served) -> None:
    with opened(served) as client:
        client.say_in_pieces(record([1, 2]), 7)
        pongs = 0
        while isinstance(event := client.next(), Pong):
            pongs += 1
        assert isinstance(event, TextMessage)
        assert json.loads(event.data)["outputs"][0]["data"] == [3.0]
        assert pongs == -(-len(json.dumps(record([1, 2]))) // 7)


def test_pings_of_a_client_that_reads_no_pongs_are_not_read(served: Served) -> None:
    with opened(served) as client, pytest.raises(TimeoutError):
        client.flood_with_pings(1_000_000)


def test_messages_are_not_compressed(served: Served) -> None:
    """A frame of some kilobytes could become gigabytes before its size is looked at."""
    with connected(served, extensions=[PerMessageDeflate()]) as client:
        accepted = client.next()
        assert isinstance(accepted, AcceptConnection)
        assert accepted.extensions == []


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [("/v1/stream", "nothing", 401), ("/v1/else", API_KEY, 403)],
)
def test_a_handshake_is_refused_as_a_request_is(
    served: Served, path: str, key: str, status: int
) -> None:
    with connected(served, path=path, key=key) as client:
        event = client.next()
        assert isinstance(event, RejectConnection)
        assert event.status_code == status


def test_a_gateway_that_stops_tells_its_streams() -> None:
    with served_gateway() as served, opened(served) as client:
        served.stop()
        assert client.hear_close() == 1012
