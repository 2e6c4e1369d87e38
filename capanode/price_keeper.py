"""Moves a node's proposed prices with how full it is, where its owner chose that policy."""

from collections.abc import Callable

import structlog
import trio

from capanode.node import Node
from capanode.utilization_price import PriceBounds, next_percent
from protocol.pricing import PERCENT

log = structlog.get_logger(__name__)

# Each step is a new offer, which all coordinators read: at most a dozen an hour.
STEP_EVERY_S = 300.0
SAMPLE_EVERY_S = 5.0


class PriceKeeper:
    """`bounds` are asked for at each step; None is the policy of fixed prices."""

    def __init__(self, node: Node, *, bounds: Callable[[], PriceBounds | None]) -> None:
        self._node = node
        self._bounds = bounds

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            taken, samples = 0.0, 0
            until = trio.current_time() + STEP_EVERY_S
            while trio.current_time() < until:
                await trio.sleep(SAMPLE_EVERY_S)
                taken, samples = taken + self._utilization(), samples + 1
            self._step(taken / samples)

    def _step(self, utilization: float) -> None:
        bounds = self._bounds()
        before = self._node.price_percent
        percent = PERCENT if bounds is None else next_percent(before, utilization, bounds)
        if percent != before:
            log.info("price_moved", percent=percent, utilization=round(utilization, 2))
            self._node.ask_percent(percent)

    def _utilization(self) -> float:
        """Of the fullest model: one that is full refuses jobs, however idle the others are."""
        shares = [
            1.0 if model.seats.queued else model.seats.running / model.seats.slots
            for model in self._node.models.values()
        ]
        return max(shares, default=0.0)
