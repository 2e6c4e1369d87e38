"""How far away nodes are from here, and streams to them that are open before a job needs one.

A coordinator measures from where it stands; its client's own round trips go along with each lease
that it asks for, as advice. They can only change which node this client gets.
"""

from typing import TYPE_CHECKING

import structlog
import trio

from protocol.ids import PeerId
from protocol.limits import LIST_ITEMS_MAX
from protocol.net.errors import NetError
from protocol.net.pool import StreamPool
from protocol.net.transport import Transport
from protocol.services import RoundTrip

if TYPE_CHECKING:
    from coordinator.edge.directory import ListedNode
    from coordinator.edge.market import EdgeMarket

log = structlog.get_logger(__name__)

# Half of the pool's idle time, so that a stream to a near node is never closed for its silence.
MEASURE_EVERY_S = 30.0
FIRST_AFTER_S = 0.5
REACHED_WITHIN_S = 3.0
AT_ONCE = 8
# RFC 6298's smoothing, as in the coordinator's book.
_GAIN = 1 / 8


class RoundTrips:
    """`advice` is what was measured. Measures the nodes that the market lists; the nearest to the
    coordinators first, as many as advice may name."""

    def __init__(self, transport: Transport, pool: StreamPool, market: "EdgeMarket") -> None:
        self._transport = transport
        self._pool = pool
        self._market = market
        self._rtt_s: dict[PeerId, float] = {}

    def advice(self) -> tuple[RoundTrip, ...]:
        return tuple(
            RoundTrip(node, max(1, round(1e6 * rtt_s))) for node, rtt_s in self._rtt_s.items()
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        wait_s = FIRST_AFTER_S
        while True:
            await self.measure()
            # Until the first lists are there, look again soon.
            wait_s = MEASURE_EVERY_S if self._rtt_s else min(2 * wait_s, MEASURE_EVERY_S)
            await trio.sleep(wait_s)

    async def measure(self) -> None:
        """One round over the nodes that are worth it; those that are gone are forgotten."""
        nodes = self._nearest()
        listed = {node.node for node in nodes}
        self._rtt_s = {node: rtt for node, rtt in self._rtt_s.items() if node in listed}
        limiter = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(self._measure_one, node, limiter)

    def _nearest(self) -> "list[ListedNode]":
        listed = {
            node.node: node
            for branch in self._market.branches
            for node in branch.nodes
            if node.is_attached and node.offer.addresses
        }

        def rtt_ms(node: "ListedNode") -> float:
            return node.rtt_ms if node.rtt_ms is not None else float("inf")

        return sorted(listed.values(), key=rtt_ms)[:LIST_ITEMS_MAX]

    async def _measure_one(self, node: "ListedNode", limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            try:
                channel = await self._pool.open_channel(
                    node.node, addresses=node.offer.addresses, timeout_s=REACHED_WITHIN_S
                )
                channel.close()
                rtt_s = await self._transport.ping(node.node, timeout_s=REACHED_WITHIN_S)
            except NetError as error:
                # A node behind a router, or gone: the coordinator's measurement has to do.
                self._rtt_s.pop(node.node, None)
                log.debug("node_not_measured", node=node.node, error=str(error))
                return
        known = self._rtt_s.get(node.node)
        self._rtt_s[node.node] = rtt_s if known is None else known + _GAIN * (rtt_s - known)
