"""Places that we hold at relays: asked for, renewed, and asked for again when they are lost."""

from collections.abc import Callable
from contextlib import suppress

import structlog
import trio

from protocol.clock import Clock
from protocol.ids import PeerId
from protocol.net.addresses import circuit_address, split_peer_id
from protocol.net.circuit_messages import (
    HOP_PROTOCOL,
    CircuitStatus,
    GrantedPlace,
    HopKind,
    HopMessage,
    describe_status,
    receive_message,
    send_message,
)
from protocol.net.errors import ConnectFailed, NetError
from protocol.net.serve import opening
from protocol.net.transport import Transport

log = structlog.get_logger(__name__)

# A relay that has given our place to another does not say so; asking costs two small messages.
RENEW_AFTER_S = 120.0
# Half of what is left of a place, but not in a loop, whatever a relay's clock says.
RENEW_AFTER_MIN_S = 5.0
# After a failure; doubled each time. A relay that restarts is there again within a second.
RETRY_AFTER_S = 0.5
RETRY_AFTER_MAX_S = 60.0
# To reach the relay and to get its answer.
ASK_WITHIN_S = 10.0
# Of the addresses that a relay says it has, beside the one that we dialled.
RELAY_ADDRESSES_MAX = 2


class Reservations:
    """The places that one transport holds, or wants. Arguments as for `KeptReservation`."""

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        *,
        read_address: Callable[[bytes], str | None],
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._read_address = read_address
        self._kept: dict[KeptReservation, None] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """Under which others can reach us now, through any relay."""
        return tuple(address for each in self._kept for address in each.addresses)

    def holds_place_at(self, relay: PeerId) -> bool:
        return any(each.relay == relay and each.addresses for each in self._kept)

    def keep(
        self, relay_address: str, on_change: Callable[[], None], nursery: trio.Nursery
    ) -> "KeptReservation":
        """Want a place until it is released or `nursery` ends. Raises AddressInvalid."""
        reservation = KeptReservation(
            self._transport,
            relay_address,
            self._clock,
            read_address=self._read_address,
            on_change=on_change,
        )
        self._kept[reservation] = None
        nursery.start_soon(self._run, reservation)
        return reservation

    async def _run(self, reservation: "KeptReservation") -> None:
        try:
            await reservation.run()
        finally:
            del self._kept[reservation]


class KeptReservation:
    """A place at the relay that `relay_address` names. `run` keeps it until `release`.

    `read_address` gives the text of a binary multiaddr that we would tell others, or None;
    `on_change` is called when `addresses` or `failure` change.
    """

    def __init__(
        self,
        transport: Transport,
        relay_address: str,
        clock: Clock,
        *,
        read_address: Callable[[bytes], str | None],
        on_change: Callable[[], None],
    ) -> None:
        _, self._relay = split_peer_id(relay_address)
        self._transport = transport
        self._relay_address = relay_address
        self._clock = clock
        self._read_address = read_address
        self._addresses: tuple[str, ...] = ()
        self._failure = ""
        self._retry_after_s = RETRY_AFTER_S
        self._on_change = on_change
        self._life = trio.CancelScope()

    @property
    def relay(self) -> PeerId:
        return self._relay

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    @property
    def failure(self) -> str:
        return self._failure

    def release(self) -> None:
        self._life.cancel()

    async def run(self) -> None:
        try:
            with self._life:
                while True:
                    await self._keep_once()
        finally:
            self._change((), "released")

    async def _keep_once(self) -> None:
        """Ask once, then wait for the time to ask again."""
        try:
            place = await self._ask()
        except NetError as error:
            log.info("reservation_failed", relay=self._relay, error=str(error))
            self._change((), str(error))
            await trio.sleep(self._retry_after_s)
            self._retry_after_s = min(2 * self._retry_after_s, RETRY_AFTER_MAX_S)
            return
        self._retry_after_s = RETRY_AFTER_S
        self._change(self._addresses_of(place), "")
        with trio.move_on_after(self._renew_after_s(place)):
            await self._transport.wait_disconnected(self._relay)
            # Perhaps this machine left the network that it came from.
            self._transport.refresh_addresses()
            self._change((), "the connection to the relay ended")

    async def _ask(self) -> GrantedPlace:
        """Raises NetError."""
        await self._transport.connect(self._relay_address, timeout_s=ASK_WITHIN_S)
        if self._transport.relay_of(self._relay) is not None:
            raise ConnectFailed(f"the relay {self._relay} is itself behind a relay")
        stream = await self._transport.open_stream(
            self._relay, HOP_PROTOCOL, timeout_s=ASK_WITHIN_S
        )
        try:
            with opening(f"{self._relay} gives no place"):
                await send_message(stream, HopMessage(HopKind.RESERVE).encode())
                answer = HopMessage.parse(await receive_message(stream))
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()
        is_granted = (answer.kind, answer.status) == (HopKind.STATUS, CircuitStatus.OK)
        if not is_granted or answer.place is None:
            raise ConnectFailed(f"{self._relay} gives no place: {describe_status(answer.status)}")
        return answer.place

    def _renew_after_s(self, place: GrantedPlace) -> float:
        left_s = place.expires_at_s - self._clock.now_ms() / 1000
        return min(max(left_s / 2, RENEW_AFTER_MIN_S), RENEW_AFTER_S)

    def _addresses_of(self, place: GrantedPlace) -> tuple[str, ...]:
        """Ours through the relay: where we dialled it, and where it says that it is."""
        told = (self._read_address(each) for each in place.addresses)
        found = [self._relay_address]
        for address in told:
            if address is None or address in found or len(found) > RELAY_ADDRESSES_MAX:
                continue
            with suppress(NetError):
                if split_peer_id(address)[1] == self._relay:
                    found.append(address)
        return tuple(circuit_address(each, self._transport.peer_id) for each in found)

    def _change(self, addresses: tuple[str, ...], failure: str) -> None:
        was = (self._addresses, self._failure)
        self._addresses, self._failure = addresses, failure
        if was != (addresses, failure):
            self._on_change()
