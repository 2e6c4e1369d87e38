"""Asking routers for a port, by both protocols, and keeping it."""

import random
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from capanode.reach.gateway import default_gateway
from capanode.reach.mapping import LIFETIME_MIN_S, LIFETIME_S, MappingError, PortMapper
from capanode.reach.nat_pmp import NatPmp
from capanode.reach.port_keeper import AGAIN_AFTER_S, PortKeeper
from capanode.reach.reachability import Reachability
from capanode.reach.upnp import Upnp, location_of, open_upnp
from protocol.net.memory import MemoryNetwork
from protocol.net.transport import Transport
from protocol.reach import DialBackReply, Dialled, DialResult
from tests.capanode.reach.routers import LOCATION, OUTSIDE, PmpRouter, UpnpRouter
from tests.protocol.makers import COORDINATOR, NODE

OWN = "192.168.1.7"


async def test_nat_pmp_maps_renews_and_gives_back() -> None:
    router = PmpRouter(given_port=50_000)
    mapper = NatPmp(router.exchange)
    mapping = await mapper.map(4101, external_port=4101)
    assert mapping.place == f"/ip4/{OUTSIDE}/tcp/50000"
    assert mapping.lifetime_s == LIFETIME_S
    assert router.forwarded == {4101: 50_000}
    await mapper.unmap(mapping)
    assert router.forwarded == {}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\x80\x00\x00",
        struct.pack("!BBHI", 0, 128, 0, 0),
        struct.pack("!BBHI", 0, 129, 0, 0) + bytes(8),
        struct.pack("!BBHI", 0, 128, 2, 0) + bytes(8),
        struct.pack("!BBHI", 0, 128, 999, 0) + bytes(8),
        bytes(2_048),
    ],
)
async def test_nat_pmp_refuses_what_is_no_answer(answer: bytes) -> None:
    async def exchange(_: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return answer

    with pytest.raises(MappingError):
        await NatPmp(exchange).map(4101, external_port=4101)


async def test_a_router_cannot_make_us_renew_without_end() -> None:
    mapping = await NatPmp(PmpRouter(lifetime_s=1).exchange).map(4101, external_port=4101)
    assert mapping.lifetime_s == LIFETIME_MIN_S


async def upnp(router: UpnpRouter) -> Upnp:
    return await open_upnp(router.fetch, LOCATION, OWN)


async def test_upnp_maps_and_gives_back() -> None:
    router = UpnpRouter()
    mapper = await upnp(router)
    mapping = await mapper.map(4101, external_port=4101)
    assert mapping.place == f"/ip4/{OUTSIDE}/tcp/4101"
    assert router.forwarded == {4101: (OWN, 4101, LIFETIME_S)}
    await mapper.unmap(mapping)
    assert router.forwarded == {}


async def test_upnp_takes_the_next_port_where_one_is_taken_and_no_lease_where_none_is_known() -> (
    None
):
    router = UpnpRouter(taken={4101, 4102}, only_for_ever=True)
    mapping = await (await upnp(router)).map(4101, external_port=4101)
    assert mapping.external_port == 4103
    assert router.forwarded == {4103: (OWN, 4101, 0)}
    with pytest.raises(MappingError, match="to others"):
        await (await upnp(UpnpRouter(taken=set(range(4_000, 5_000))))).map(4101, external_port=4101)


@pytest.mark.parametrize(
    "description",
    [
        "",
        "<service>",
        "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>"
        "<controlURL>http://192.0.2.1/</controlURL></service>",
        "<root>" * 10_000,
    ],
)
async def test_a_device_that_is_no_router_or_points_elsewhere_is_refused(description: str) -> None:
    async def fetch(_: str, __: dict[str, str], ___: bytes | None) -> tuple[int, bytes]:
        await trio.lowlevel.checkpoint()
        return 200, description.encode()

    with pytest.raises(MappingError):
        await open_upnp(fetch, LOCATION, OWN)


def test_an_answer_to_a_search_leads_to_its_sender_only() -> None:
    answer = b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n"
    assert location_of(answer, "192.168.1.1") == LOCATION
    assert location_of(answer, "192.168.1.2") is None
    assert location_of(answer.replace(b"192.168.1.1", b"8.8.8.8"), "8.8.8.8") is None
    assert location_of(b"HTTP/1.1 200 OK\r\n\r\n", "192.168.1.1") is None
    assert location_of(answer, "") is None


def test_the_gateway_is_where_the_default_route_leads() -> None:
    head = "Iface\tDestination\tGateway\tFlags\n"
    assert default_gateway(head + "eth0\t0001A8C0\t00000000\t1\n") is None
    assert default_gateway(head + "eth0\t00000000\t0101A8C0\t3\n") == "192.168.1.1"
    assert default_gateway("") is None


# Keeping it.


@dataclass
class Home:
    """A node behind a router. `hear` is what coordinators' dials come to."""

    router: PmpRouter
    transport: Transport
    reach: Reachability
    looks: int = 0
    failure: MappingError | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def find(self) -> Sequence[PortMapper]:
        await trio.lowlevel.checkpoint()
        self.looks += 1
        if self.failure is not None:
            raise self.failure
        return [NatPmp(self.router.exchange)]

    def hear(self, outcome: Dialled) -> None:
        """About all that may work."""
        results = tuple(DialResult(address, outcome) for address in self.reach.candidates())
        self.reach.note(COORDINATOR.peer_id, DialBackReply("", results))

    @property
    def words(self) -> str:
        return self.reach.status().port_mapping


class ListeningTransport:
    """Behaves as a transport that listens at a private address."""

    addresses = (f"/ip4/{OWN}/tcp/4101/p2p/{NODE.peer_id}",)
    announced = ()

    def __init__(self, transport: Transport) -> None:
        self.reserve = transport.reserve


@asynccontextmanager
async def at_home(router: PmpRouter) -> AsyncIterator[Home]:
    transport = ListeningTransport(MemoryNetwork(random.Random(1)).transport(NODE))
    reach = Reachability(transport, by_hand=False, on_change=lambda: None)  # type: ignore[arg-type]  # all of it that is used here
    home = Home(router, transport, reach)  # type: ignore[arg-type]  # likewise
    async with trio.open_nursery() as nursery:

        async def keep() -> None:
            with home.scope:
                await PortKeeper(home.transport, reach, home.find).run()

        nursery.start_soon(keep)
        await trio.sleep(1)
        yield home
        nursery.cancel_scope.cancel()


async def test_no_router_is_asked_while_the_node_can_be_dialled(autojump_clock: MockClock) -> None:
    async with at_home(PmpRouter()) as home:
        home.hear(Dialled.REACHED)
        await trio.sleep(10_000)
        assert home.looks == 0


async def test_a_port_is_mapped_renewed_and_given_back_at_the_end(
    autojump_clock: MockClock,
) -> None:
    async with at_home(PmpRouter()) as home:
        home.hear(Dialled.TIMED_OUT)
        await trio.sleep(1)
        assert any(OUTSIDE in address for address in home.reach.candidates())
        assert "forwards port 4101" in home.words
        home.hear(Dialled.REACHED)
        asked = home.router.asked
        await trio.sleep(3 * LIFETIME_S)
        assert 4 <= (home.router.asked - asked) // 2 <= 7
        assert home.looks == 1
        home.scope.cancel()
        await trio.sleep(1)
        assert home.router.forwarded == {}


async def test_a_router_that_rebooted_is_asked_again(autojump_clock: MockClock) -> None:
    async with at_home(PmpRouter()) as home:
        home.hear(Dialled.TIMED_OUT)
        await trio.sleep(1)
        home.hear(Dialled.REACHED)
        await trio.sleep(100)
        home.router.forwarded.clear()
        home.hear(Dialled.TIMED_OUT)
        await trio.sleep(5)
        assert home.router.forwarded == {4101: 4101}


async def test_two_routers_in_a_row_are_found_out(autojump_clock: MockClock) -> None:
    async with at_home(PmpRouter(outside="192.168.0.2")) as home:
        home.hear(Dialled.TIMED_OUT)
        await trio.sleep(1)
        assert "behind another one" in home.words
        home.hear(Dialled.TIMED_OUT)
        await trio.sleep(1_000)
        assert home.looks < 10


async def test_without_such_a_router_it_looks_again_now_and_then(autojump_clock: MockClock) -> None:
    async with at_home(PmpRouter(is_silent=True)) as home:
        home.hear(Dialled.TIMED_OUT)
        await trio.sleep(1)
        assert "does not answer" in home.words
        await trio.sleep(10 * AGAIN_AFTER_S)
        assert 5 < home.looks < 15
        home.failure = MappingError("this machine has no default gateway")
        await trio.sleep(2 * AGAIN_AFTER_S)
        assert "no default gateway" in home.words
