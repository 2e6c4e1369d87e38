"""Our own leases, counted at the models and machines where their jobs run.

A lease takes a seat from its grant until it is released or expires. One whose node is not listed
waits for it: a restarted coordinator knows its leases before the nodes have offered again.
"""

import heapq
from collections.abc import Mapping

from coordinator.market.machines import Machines
from coordinator.market.offers.entry import ModelState, NodeEntry
from coordinator.market.offers.index import publish_busy
from protocol.ids import Digest, LeaseId, PeerId


class Seating:
    """`entries` are the nodes that the book lists at this moment."""

    def __init__(self, entries: Mapping[PeerId, NodeEntry], machines: Machines) -> None:
        self._entries = entries
        self._machines = machines
        self._leases: dict[LeaseId, tuple[PeerId, Digest, bool]] = {}
        # Of nodes that are not listed.
        self._early: dict[PeerId, list[LeaseId]] = {}
        self._expiries: list[tuple[int, LeaseId]] = []

    def grant(
        self,
        lease_id: LeaseId,
        node: PeerId,
        model: Digest,
        *,
        expires_at_ms: int,
        is_batch: bool = False,
    ) -> None:
        """Count a job against the node from now, or from when it offers the model, until `release`
        or until it expires. A batch's gives way to others."""
        if lease_id in self._leases:
            return
        self._leases[lease_id] = (node, model, is_batch)
        heapq.heappush(self._expiries, (expires_at_ms, lease_id))
        entry = self._entries.get(node)
        state = entry.models.get(model) if entry else None
        if entry is None:
            self._early.setdefault(node, []).append(lease_id)
        elif state is not None:
            self._seat(entry, state, lease_id)
            publish_busy(entry, state)

    def release(self, lease_id: LeaseId) -> bool:
        """The leased job ended, or never began; unknown ids are ignored. Returns whether a seat is
        free now that was not."""
        where = self._leases.pop(lease_id, None)
        if where is not None:
            self._forget_early(lease_id, where[0])
        entry = self._entries.get(where[0]) if where else None
        state = entry.models.get(where[1]) if entry and where else None
        if entry is None or state is None or lease_id not in state.leases:
            return False
        state.release(lease_id)
        self._machines.change_busy(entry.machine, -1)
        publish_busy(entry, state)
        return True

    def expire(self, now_ms: int) -> None:
        """Release the leases whose time is over."""
        while self._expiries and self._expiries[0][0] <= now_ms:
            self.release(heapq.heappop(self._expiries)[1])

    # What becomes of the nodes.

    def seat_early(self, entry: NodeEntry) -> None:
        """The node is about to be listed, or lists other models: seat the leases that were granted
        before. Those of models that it does not list wait on. Its rows are published after this."""
        for lease_id in self._early.pop(entry.node, ()):
            state = entry.models.get(self._leases[lease_id][1])
            if state is not None:
                self._seat(entry, state, lease_id)
            else:
                self._early.setdefault(entry.node, []).append(lease_id)

    def leave(self, entry: NodeEntry, state: ModelState) -> None:
        """The model is not offered any more. Its leases take their seats again if it is offered
        once more before they end: a node must not free them by changing its offer."""
        if state.leases:
            self._early.setdefault(entry.node, []).extend(sorted(state.leases))
        self._machines.change_busy(entry.machine, -len(state.leases))

    def move(self, entry: NodeEntry, network: str) -> None:
        """The node's addresses are in another block now: its jobs count there."""
        if network == entry.network:
            return
        seated = sum(len(state.leases) for state in entry.models.values())
        self._machines.change_busy(entry.machine, -seated)
        self._machines.unpin(entry.network)
        entry.network, entry.machine = network, self._machines.pin(network)
        self._machines.change_busy(entry.machine, seated)

    def _forget_early(self, lease_id: LeaseId, node: PeerId) -> None:
        early = self._early.get(node, [])
        if lease_id in early:
            early.remove(lease_id)
            if not early:
                del self._early[node]

    def _seat(self, entry: NodeEntry, state: ModelState, lease_id: LeaseId) -> None:
        state.grant(lease_id, is_batch=self._leases[lease_id][2])
        self._machines.change_busy(entry.machine, 1)
