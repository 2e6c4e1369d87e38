"""What a client without a key may make the gateway keep by the framing of its requests alone."""

import logging
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from coordinator.gateway import server
from coordinator.gateway.http.server_protocol import HEADERS_MAX, PIPELINED_MAX
from tests.integration.openai_api import Served, read_all, served_gateway

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"
CHUNKED = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
BODY: dict[str, object] = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def served() -> Iterator[Served]:
    with served_gateway() as running:
        yield running


def send(connection: socket.socket, data: bytes) -> None:
    """As much of it as the other side takes before it closes."""
    with suppress(OSError):
        connection.sendall(data)


def test_few_requests_wait_on_one_connection(served: Served) -> None:
    with served.connect() as connection:
        send(connection, (GET + b"\r\n") * 1_000)
        answer = read_all(connection)
    assert b"HTTP/1.1 429" in answer
    assert answer.count(b"HTTP/1.1 200") <= PIPELINED_MAX + 1


def test_pipelined_upgrades_are_bounded_as_well(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Each once cost a level of the stack, and the traceback of all levels went into the log."""
    upgrade = GET + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
    with caplog.at_level(logging.ERROR), served.connect() as connection:
        send(connection, upgrade * 2_000)
        assert b"HTTP/1.1 429" in read_all(connection)
    assert not caplog.records


@pytest.mark.parametrize(("count", "status"), [(HEADERS_MAX, b"200"), (HEADERS_MAX + 1, b"431")])
def test_the_number_of_headers_is_bounded(served: Served, count: int, status: bytes) -> None:
    head = GET + b"a:\r\n" * (count - 2) + b"connection: close\r\n\r\n"
    with served.connect() as connection:
        connection.sendall(head)
        assert read_all(connection).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    "framing",
    [b"0\r\n" + b"a: b\r\n" * 200_000, b"0\r\na: " + b"b" * 1_200_000, b"5;" + b"x" * 1_200_000],
    ids=["trailers", "one-trailer", "chunk-extension"],
)
def test_what_stands_around_a_body_is_bounded(served: Served, framing: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(CHUNKED)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 401")
        send(connection, framing)
        assert b"malformed_http" in read_all(connection)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (GET + b"Host: y\r\n", b"the header host is given twice"),
        (GET + b"authorization: Bearer a\r\nauthorization: Bearer b\r\n", b"authorization is"),
        (b"GET /health HTTP/1.1\r\n", b"the header host is missing"),
    ],
)
def test_a_header_that_must_be_there_once_is(served: Served, head: bytes, words: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(head + b"\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert words in answer


def test_an_upgrade_that_is_ignored_leaves_the_connection_as_it_was_asked_for(
    served: Served,
) -> None:
    upgrade = b"connection: Upgrade, HTTP2-Settings, close\r\nupgrade: h2c\r\n\r\n"
    with served.connect() as connection:
        connection.sendall(GET + upgrade)
        assert read_all(connection).startswith(b"HTTP/1.1 200")
    with served.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_a_trailer_is_no_header(served: Served) -> None:
    head, _, content = served.request_bytes(BODY).partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
    key = next(line for line in lines if line.startswith(b"authorization"))
    lines = [line for line in lines if line != key] + [b"transfer-encoding: chunked"]
    chunk = b"%x\r\n%b\r\n" % (len(content), content)
    with served.connect() as connection:
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + chunk + b"0\r\n" + key + b"\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("rest", [b"", b"x", b"x" * 9], ids=["none", "part", "all but one byte"])
def test_the_rest_of_a_body_is_not_awaited_for_ever(
    monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.2)
    with served_gateway() as served, served.connect() as connection:
        connection.sendall(GET + b"content-length: 10\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        send(connection, rest)
        # Of the answer what the first read left, and no second one.
        assert b"HTTP/1.1" not in read_all(connection)


def test_a_connection_is_reused_after_a_body_that_came_late(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(GET + b"content-length: 10\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"x" * 10 + GET + b"connection: close\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200")
