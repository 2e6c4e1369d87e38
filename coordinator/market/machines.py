"""What the machines of unproven nodes may take: keys cost nothing, addresses cost more.

Nodes whose addresses are in one block count as one machine. A machine's seats grow with the answers
of its nodes and shrink with their failures, and its breaker opens after a few of them. Both bind
only nodes without a record of their own, so that a bad neighbour does not harm an honest node, and
fifty new identities cost the market no more than one.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator.market.breaker import Breaker
from coordinator.market.seats import SEATS_MAX, after_answer, after_failure
from coordinator.market.steadiness import Steadiness

# As many as one new node gets. All of them may be lost before the first failure is seen.
MACHINE_SEATS_AT_START = 4.0
# A machine without any record that fails is left alone for longer than a node with one.
_PATIENCE_DOUBLINGS = 6

# Rows of the matrix.
_BUSY, _SEATS, _OPEN_UNTIL, _UNSTEADY_UNTIL = range(4)


@dataclass(slots=True)
class _Machine:
    slot: int
    nodes: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    steadiness: Steadiness = field(default_factory=Steadiness)


class Machines:
    """A row for each address block that a listed node is in."""

    def __init__(self, *, seats_at_start: float = MACHINE_SEATS_AT_START) -> None:
        self._seats_at_start = seats_at_start
        self._known: dict[str, _Machine] = {}
        self._by_slot: dict[int, _Machine] = {}
        self._free_slots: list[int] = []
        self._matrix: NDArray[np.float64] = np.zeros((4, 64))

    def __len__(self) -> int:
        return len(self._known)

    # Which machine has which row.

    def pin(self, block: str) -> int:
        """The row of a node's machine, until as many `unpin` calls."""
        machine = self._known.get(block)
        if machine is None:
            machine = self._known[block] = _Machine(self._take_slot())
            self._by_slot[machine.slot] = machine
        machine.nodes += 1
        return machine.slot

    def unpin(self, block: str) -> None:
        """A machine is forgotten with its last node, unless it is being left alone."""
        machine = self._known[block]
        machine.nodes -= 1
        if machine.nodes == 0 and not machine.breaker.open_until_ms:
            del self._known[block]
            del self._by_slot[machine.slot]
            self._free_slots.append(machine.slot)

    def _take_slot(self) -> int:
        slot = self._free_slots.pop() if self._free_slots else len(self._known)
        if slot >= self._matrix.shape[1]:
            self._matrix = np.hstack([self._matrix, np.zeros_like(self._matrix)])
        self._matrix[:, slot] = (0.0, self._seats_at_start, 0.0, 0.0)
        return slot

    # What happened.

    def change_busy(self, slot: int, change: int) -> None:
        """So many more of our leases are at its nodes."""
        self._matrix[_BUSY, slot] += change

    def on_attempt(self, slot: int, now_ms: int) -> bool:
        """A job is sent to an unproven node: after an outage it is the only probe. Returns whether
        it is one."""
        breaker = self._by_slot[slot].breaker
        is_probe = breaker.on_attempt(now_ms)
        self._matrix[_OPEN_UNTIL, slot] = breaker.blocked_until_ms
        return is_probe

    def on_success(self, slot: int, now_ms: int, *, weight: float) -> None:
        breaker = self._by_slot[slot].breaker
        breaker.on_success(now_ms)
        self._matrix[_OPEN_UNTIL, slot] = breaker.blocked_until_ms
        self._matrix[_SEATS, slot] = after_answer(float(self._matrix[_SEATS, slot]), weight)

    def on_failure(self, slot: int, now_ms: int, *, jitter: float) -> None:
        """An unproven node there failed."""
        breaker = self._by_slot[slot].breaker
        breaker.openings = max(breaker.openings, _PATIENCE_DOUBLINGS)
        breaker.on_failure(now_ms, fails_often=False, jitter=jitter)
        self._matrix[_OPEN_UNTIL, slot] = breaker.blocked_until_ms
        self._matrix[_SEATS, slot] = after_failure(float(self._matrix[_SEATS, slot]))

    def on_no_verdict(self, slot: int) -> None:
        breaker = self._by_slot[slot].breaker
        breaker.on_no_verdict()
        self._matrix[_OPEN_UNTIL, slot] = breaker.blocked_until_ms

    def on_loss(self, slot: int, now_ms: int) -> None:
        """A node there went away without notice."""
        steadiness = self._by_slot[slot].steadiness
        steadiness.on_loss(now_ms)
        self._matrix[_UNSTEADY_UNTIL, slot] = steadiness.unsteady_until_ms

    # What it says, for many nodes at once. `slots` has one entry per node.

    def is_full(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        full: NDArray[np.bool_] = self._matrix[_BUSY] >= np.minimum(
            np.floor(self._matrix[_SEATS]), SEATS_MAX
        )
        return full[slots]

    def is_open(self, slots: NDArray[np.int64], now_ms: int) -> NDArray[np.bool_]:
        is_open: NDArray[np.bool_] = self._matrix[_OPEN_UNTIL] > now_ms
        return is_open[slots]

    def is_unsteady(self, slots: NDArray[np.int64], now_ms: int) -> NDArray[np.bool_]:
        is_unsteady: NDArray[np.bool_] = self._matrix[_UNSTEADY_UNTIL] > now_ms
        return is_unsteady[slots]
