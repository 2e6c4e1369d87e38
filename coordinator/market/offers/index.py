"""Where matching finds offers: one table per manifest digest, and one per model name.

A table exists as long as it has a row. The book says which nodes are listed and what changed; the
index puts that into the rows.
"""

from collections.abc import Mapping

from coordinator.market.offers.entry import ModelState, NodeEntry
from coordinator.market.offers.table import BUSY, FLAGS, LIVE, RTT_MS, ModelTable
from protocol.ids import Digest, is_digest
from protocol.offers import ModelOffer


class OfferIndex:
    """`catalogue` names the digests that may answer to a model's name. A name that is not in it
    belongs to every node that uses it, and only a digest protects a buyer from a cuckoo."""

    def __init__(self, catalogue: Mapping[str, frozenset[Digest]]) -> None:
        self._catalogue = dict(catalogue)
        self._by_digest: dict[str, ModelTable] = {}
        self._by_name: dict[str, ModelTable] = {}

    def table(self, model: str) -> ModelTable | None:
        """The offers of a manifest digest or of a name; None if there are none."""
        return (self._by_digest if is_digest(model) else self._by_name).get(model)

    def models(self) -> dict[str, int]:
        """How many nodes offer each model name."""
        return {name: len(table) for name, table in self._by_name.items()}

    def publish(self, entry: NodeEntry) -> None:
        """Write a row for each of the node's models, or replace it."""
        for state in entry.models.values():
            state.tables = self._tables_for(state.offer)
            values, codes = entry.row_values(state), entry.row_codes(state)
            for table in state.tables:
                table.put(entry.node, values, codes, tie=entry.tie)

    def unpublish(self, entry: NodeEntry) -> None:
        """Remove the node's rows, and the tables that this leaves empty."""
        for state in entry.models.values():
            for table in state.tables:
                table.remove(entry.node)
            for index, key in (
                (self._by_digest, state.offer.manifest_digest),
                (self._by_name, state.offer.name),
            ):
                if key in index and len(index[key]) == 0:
                    del index[key]
            state.tables = ()

    def _tables_for(self, model: ModelOffer) -> tuple[ModelTable, ...]:
        """The tables that this offer belongs into, made when missing."""
        digest, name = model.manifest_digest, model.name
        by_digest = self._by_digest.get(digest)
        if by_digest is None:
            by_digest = self._by_digest[digest] = ModelTable(digest)
        allowed = self._catalogue.get(name)
        if allowed is not None and digest not in allowed:
            return (by_digest,)
        by_name = self._by_name.get(name)
        if by_name is None:
            by_name = self._by_name[name] = ModelTable(name)
        return (by_digest, by_name)


def publish_busy(entry: NodeEntry, state: ModelState) -> None:
    """One of its models has more or fewer jobs."""
    for table in state.tables:
        table.set_value(entry.node, BUSY, state.busy)
        table.set_value(entry.node, LIVE, state.live)


def publish_flags(entry: NodeEntry) -> None:
    """Whether jobs are kept away from it has changed."""
    for state in entry.models.values():
        for table in state.tables:
            table.set_code(entry.node, FLAGS, entry.flags(state))


def publish_rtt(entry: NodeEntry, rtt_ms: float) -> None:
    """Its smoothed round trip has changed."""
    for state in entry.models.values():
        for table in state.tables:
            table.set_value(entry.node, RTT_MS, rtt_ms)
