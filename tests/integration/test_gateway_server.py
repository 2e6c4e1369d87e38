"""The gateway on real sockets: how it starts and stops, and what it does to rude clients."""

import gzip
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import httpx
import pytest
import trio

from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.http import server_protocol
from coordinator.gateway.metrics import Metrics
from coordinator.gateway.server import Gateway
from protocol.net.descriptors import server_descriptors
from protocol.net.errors import AddressInUse, AddressInvalid
from tests.coordinator.gateway.fake_market import FakeMarket, Script
from tests.integration.openai_api import WITHIN_S, Served, read_all, served_gateway

BODY: dict[str, object] = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def served() -> Iterator[Served]:
    with served_gateway() as running:
        yield running


def post(served: Served, body: dict[str, object]) -> httpx.Response:
    return httpx.post(
        f"{served.api.base_url}/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {served.api.key}"},
        timeout=WITHIN_S,
    )


def read_socket(connection: socket.socket) -> bytes:
    return connection.recv(65_536)


def gateway_at(host: str, port: int) -> Gateway:
    return Gateway(GatewayConfig(host=host, port=port), FakeMarket(), Metrics())


async def run_briefly(gateway: Gateway) -> str:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(gateway.run)
        assert isinstance(url, str)
        nursery.cancel_scope.cancel()
    return url


async def test_port_zero_takes_a_free_one_and_says_which() -> None:
    url = await run_briefly(gateway_at("127.0.0.1", 0))
    assert int(url.rsplit(":", 1)[1]) > 0


async def test_a_taken_port_is_said_so() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressInUse, match=str(port)):
            await gateway_at("127.0.0.1", port).run()


async def test_an_address_that_is_not_ours_is_said_so() -> None:
    with pytest.raises(AddressInvalid):
        await gateway_at("203.0.113.7", 0).run()


async def test_it_can_be_started_again_on_the_same_port() -> None:
    first = await run_briefly(gateway_at("127.0.0.1", 0))
    port = int(first.rsplit(":", 1)[1])
    assert await run_briefly(gateway_at("127.0.0.1", port)) == first


async def test_who_comes_before_the_gateway_is_served_once_it_runs_on_an_inherited_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        with socket.create_connection((host, port), timeout=WITHIN_S) as early:
            early.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            config = GatewayConfig(descriptor=listener.fileno())
            async with trio.open_nursery() as nursery:
                url = await nursery.start(Gateway(config, FakeMarket(), Metrics()).run)
                assert url == f"http://{host}:{port}"
                reply = await trio.to_thread.run_sync(read_socket, early)
                assert reply.startswith(b"HTTP/1.1 ")
                nursery.cancel_scope.cancel()
        with socket.create_connection((host, port), timeout=WITHIN_S):
            """The socket is its owner's, and still there."""


async def test_a_descriptor_that_is_no_listening_socket_is_said_so() -> None:
    with socket.socket() as idle, open(os.devnull) as file:  # noqa: ASYNC230 - nothing is read
        for descriptor in (idle.fileno(), file.fileno(), 10_000):
            gateway = Gateway(GatewayConfig(descriptor=descriptor), FakeMarket(), Metrics())
            with pytest.raises(AddressInvalid, match=str(descriptor)):
                await gateway.run()


def test_connections_stay_within_the_gateways_share_of_the_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The network of the same process, and its books, need theirs."""
    places = server_descriptors(0)
    monkeypatch.setattr("coordinator.gateway.server.raise_descriptor_limit", lambda: 0)
    with ExitStack() as stack:
        served = stack.enter_context(served_gateway())
        held = [stack.enter_context(served.connect()) for _ in range(places)]
        refused = stack.enter_context(served.connect())
        assert refused.recv(65_536).startswith(b"HTTP/1.1 503 ")
        held[0].sendall(served.request_bytes(BODY))
        assert held[0].recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_a_stopping_gateway_lets_a_stream_finish() -> None:
    with served_gateway(GatewayConfig(port=0, shutdown_within_s=WITHIN_S)) as served:
        served.market.script = Script(gate_before=2)
        with served.connect() as connection:
            connection.sendall(served.request_bytes(BODY | {"stream": True}))
            first = connection.recv(65_536)
            assert first.startswith(b"HTTP/1.1 200")
            served.stop()
            _wait_refused(served)
            served.in_trio(served.market.gate.set)
            assert (first + read_all(connection)).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert served.ended.wait(WITHIN_S)


def test_a_stopping_gateway_cuts_what_outlasts_its_deadline() -> None:
    with served_gateway(GatewayConfig(port=0, shutdown_within_s=0.2)) as served:
        served.market.script = Script(gate_before=2)
        with served.connect() as connection:
            connection.sendall(served.request_bytes(BODY | {"stream": True}))
            first = connection.recv(65_536)
            served.stop()
            answer = first + read_all(connection)
        assert b'"code": "coordinator_lost"' in answer
        assert b"[DONE]" not in answer
        assert served.ended.wait(WITHIN_S)
        assert served.market.cancelled == 1


def _wait_refused(served: Served) -> None:
    """Until the listening socket is closed."""
    for _ in range(1_000):
        try:
            served.connect().close()
        except ConnectionRefusedError:
            return
        time.sleep(0.01)
    raise AssertionError("it still listens")


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_cancels_the_job(served: Served, stream: bool) -> None:
    served.market.script = Script(gate_before=0)
    with served.connect() as connection:
        connection.sendall(served.request_bytes(BODY | {"stream": stream}))
        served.wait(served.market.waiting)
    served.wait(served.market.cancellation)
    assert served.market.cancelled == 1
    served.market.script = Script()
    assert post(served, BODY).status_code == 200


def test_many_requests_on_one_connection(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(served.request_bytes(BODY) * 5)
        answer = b""
        while answer.count(b"HTTP/1.1 200") < 5 or not answer.endswith(b"}}"):
            part = connection.recv(65_536)
            assert part
            answer += part


def test_a_large_upload_is_refused_before_it_is_sent(served: Served) -> None:
    with served.connect() as connection:
        head = served.request_bytes(BODY).split(b"content-length")[0]
        connection.sendall(head + b"content-length: 999999999999\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"input_too_large"' in answer


def test_a_client_that_asks_before_its_upload_is_told_at_once(served: Served) -> None:
    """100 before the body is sent, or the refusal instead of it."""
    head, _, content = served.request_bytes(BODY).partition(b"\r\n\r\n")
    expecting = head + b"\r\nexpect: 100-continue\r\n\r\n"
    with served.connect() as connection:
        connection.sendall(expecting)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 100")
        connection.sendall(content)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
    refusals = {
        b"413": expecting.replace(b"content-length: ", b"content-length: 99999999"),
        b"415": expecting.replace(b"\r\nexpect", b"\r\ncontent-encoding: zstd\r\nexpect"),
        b"401": expecting.replace(b"Bearer ", b"Bearer x"),
    }
    for status, request in refusals.items():
        with served.connect() as connection:
            connection.sendall(request)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 " + status)


def test_a_compressed_body_arrives_in_chunks(served: Served) -> None:
    head, _, content = served.request_bytes(BODY).partition(b"\r\n\r\n")
    head = head.partition(b"content-length")[0] + b"content-encoding: gzip\r\n"
    packed = gzip.compress(content)
    with served.connect() as connection:
        connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        for byte in packed:
            connection.sendall(b"1\r\n%c\r\n" % byte)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")


def test_an_upload_without_a_length_is_counted() -> None:
    with served_gateway(GatewayConfig(port=0, body_bytes_max=10_000)) as served:
        with served.connect() as connection:
            head = served.request_bytes(BODY).split(b"content-length")[0]
            connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
            connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            connection.sendall((b"1000\r\n" + b"x" * 4096 + b"\r\n") * 2)
            assert read_all(connection).startswith(b"HTTP/1.1 413")
        assert post(served, BODY).status_code == 200


@pytest.mark.parametrize(
    "rubbish",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(served: Served, rubbish: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(rubbish)
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "malformed_http"
    assert post(served, BODY).status_code == 200


def test_a_head_of_any_size_is_not_collected(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        with pytest.raises(OSError, match=r"eset|roken pipe"):
            _send_headers_for_ever(connection)
    assert post(served, BODY).status_code == 200


def _send_headers_for_ever(connection: socket.socket) -> None:
    for number in range(10_000):
        connection.sendall(f"x-{number}: {'y' * 1_000}\r\n".encode())


@pytest.mark.parametrize("size", [65_000, 66_000, 100_000])
def test_the_bound_of_a_head_is_hard(served: Served, size: int) -> None:
    with served.connect() as connection:
        head = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        connection.sendall(head + b"x: " + b"y" * (size - len(head) - 7) + b"\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200" if size < 65_536 else b"HTTP/1.1 431")


def test_the_bound_of_a_head_holds_for_a_second_request_in_the_same_packet(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(
            served.request_bytes(BODY) + b"GET / HTTP/1.1\r\nx: " + b"y" * 66_000 + b"\r\n\r\n"
        )
        assert b"HTTP/1.1 431" in read_all(connection)


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
def test_an_upgrade_that_is_not_supported_is_ignored(served: Served, upgrade: bytes) -> None:
    head, content = served.request_bytes(BODY).split(b"\r\n\r\n")
    head += b"\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEA"
    head += b"\r\nUpgrade: " + upgrade
    with served.connect() as connection:
        for part in (head[:50], head[50:] + b"\r\n\r\n" + content[:9], content[9:]):
            connection.sendall(part)
        answer = connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200")
        connection.sendall(served.request_bytes(BODY))
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")


def test_a_reader_that_does_not_read_is_disconnected_and_its_job_cancelled() -> None:
    config = GatewayConfig(port=0, reader_within_s=0.3, stream_chunks_max=8)
    with served_gateway(config) as served:
        served.market.script = Script(tokens=["x" * 65_536] * 1_000)
        with served.connect() as connection:
            connection.sendall(served.request_bytes(BODY | {"stream": True}))
            served.wait(served.market.cancellation)
        served.market.script = Script()
        assert post(served, BODY).status_code == 200


def test_who_says_nothing_or_only_half_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    monkeypatch.setattr(server_protocol, "HEAD_WITHIN_S", 0.05)
    for said in (b"", b"GET /health HT"):
        with served.connect() as connection:
            connection.sendall(said)
            assert read_all(connection) == b""
    assert post(served, BODY).status_code == 200


def test_connections_are_bounded() -> None:
    with (
        served_gateway(GatewayConfig(port=0, connections_max=2)) as served,
        served.connect() as first,
        served.connect() as second,
        served.connect() as third,
    ):
        assert read_all(third).startswith(b"HTTP/1.1 503")
        for connection in (first, second):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 200")
