"""The clients for routers on real sockets, against a router on loopback."""

import socket

import pytest
import trio

from capanode.reach.gateway import datagrams_to, fetch
from capanode.reach.mapping import MappingError
from capanode.reach.nat_pmp import NatPmp
from capanode.reach.upnp import open_upnp
from tests.capanode.reach.routers import DESCRIPTION, OUTSIDE, PmpRouter


async def serve_datagrams(
    router: PmpRouter, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        await udp.bind(("127.0.0.1", 0))
        task_status.started(udp.getsockname()[1])
        while True:
            request, sender = await udp.recvfrom(2_048)
            await udp.sendto(await router.exchange(request), sender)


async def test_nat_pmp_over_datagrams(nursery: trio.Nursery) -> None:
    router = PmpRouter()
    port = await nursery.start(serve_datagrams, router)
    mapping = await NatPmp(datagrams_to("127.0.0.1", port)).map(4101, external_port=4101)
    assert mapping.external_host == OUTSIDE
    assert router.forwarded == {4101: 4101}


async def test_a_gateway_that_does_not_answer_is_given_up_soon() -> None:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        await silent.bind(("127.0.0.1", 0))
        exchange = datagrams_to("127.0.0.1", silent.getsockname()[1])
        with trio.fail_after(10), pytest.raises(MappingError):
            await exchange(b"\x00\x00")


async def test_a_description_is_fetched_over_http(nursery: trio.Nursery) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        request = await stream.receive_some(4_096)
        assert request.startswith(b"GET /rootDesc.xml HTTP/1.0\r\n")
        body = DESCRIPTION.encode()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\n\r\n" + body)
        await stream.aclose()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, answer, [listener])
    port = listener.socket.getsockname()[1]
    location = f"http://127.0.0.1:{port}/rootDesc.xml"
    assert await open_upnp(fetch, location, "127.0.0.1") is not None
    with pytest.raises(MappingError):
        await fetch("http://127.0.0.1:1/", {}, None)
