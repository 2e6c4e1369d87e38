"""Keeps a port forwarded by the router, where nothing can dial this node otherwise.

Asked for when no address of ours was reached, renewed at half of its life, asked for again when the
router has forgotten it, and given back at the end.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from capanode.reach.advice import is_carrier_nat, port_of
from capanode.reach.mapping import MappingError, PortMapper, PortMapping
from capanode.reach.reachability import Reachability
from protocol.net.transport import Transport

log = structlog.get_logger(__name__)

# A router that was asked in vain may be another one, or set up, some minutes later.
AGAIN_AFTER_S = 300.0
# Between a mapping and the coordinators' word on it.
SEEN_WITHIN_S = 30.0
GIVE_BACK_WITHIN_S = 2.0

FindMappers = Callable[[], Awaitable[Sequence[PortMapper]]]


class PortKeeper:
    """`find` looks for the ways to ask the router."""

    def __init__(self, transport: Transport, reach: Reachability, find: FindMappers) -> None:
        self._transport = transport
        self._reach = reach
        self._find = find
        self._held: tuple[PortMapper, PortMapping] | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        try:
            while True:
                await self._reach.wait_not_direct()
                await self._map()
                await self._keep()
        finally:
            await self._give_back()

    async def _map(self) -> None:
        port = self._port()
        if port is None:
            return
        failure = MappingError("no router forwards ports to this machine")
        try:
            mappers = await self._find()
        except MappingError as error:
            mappers, failure = (), error
        for mapper in mappers:
            try:
                mapping = await mapper.map(port, external_port=port)
            except MappingError as error:
                failure = error
            else:
                self._held = (mapper, mapping)
                self._tell(mapping)
                return
        self._held = None
        log.info("port_not_mapped", error=str(failure))
        self._reach.note_mapping((), str(failure))

    async def _keep(self) -> None:
        """Until the mapping is lost, or it is time to look for a router again."""
        if self._held is None:
            await trio.sleep(AGAIN_AFTER_S)
            return
        mapper, mapping = self._held
        await trio.sleep(SEEN_WITHIN_S)
        while True:
            with trio.move_on_after(mapping.lifetime_s / 2) as life:
                await self._reach.wait_not_direct()
            if not life.cancelled_caught:
                if _is_private(mapping.external_host):
                    # Dials from outside do not get to this router: mapping again does not help.
                    await trio.sleep(AGAIN_AFTER_S)
                return
            try:
                mapping = await mapper.map(mapping.port, external_port=mapping.external_port)
            except MappingError as error:
                log.info("port_mapping_lost", error=str(error))
                return
            self._held = (mapper, mapping)
            self._tell(mapping)

    def _tell(self, mapping: PortMapping) -> None:
        words = f"{mapping.how}: {mapping.external_host} forwards port {mapping.external_port}"
        log.info("port_mapped", how=mapping.how, place=mapping.place)
        if _is_private(mapping.external_host):
            words += (
                "; that router is itself behind another one (its address outside is private), so "
                "the other one has to forward the port, too"
            )
        self._reach.note_mapping((mapping.place,), words)
        self._reach.look_again()

    def _port(self) -> int | None:
        """Where we listen, for any of this machine's addresses."""
        ports = (port_of(address) for address in self._transport.addresses)
        return next((int(port) for port in ports if port), None)

    async def _give_back(self) -> None:
        if self._held is None:
            return
        mapper, mapping = self._held
        with trio.move_on_after(GIVE_BACK_WITHIN_S) as scope:
            scope.shield = True
            try:
                await mapper.unmap(mapping)
            except MappingError as error:
                log.info("port_mapping_not_given_back", error=str(error))


def _is_private(host: str) -> bool:
    return is_carrier_nat(host) or ipaddress.ip_address(host).is_private
