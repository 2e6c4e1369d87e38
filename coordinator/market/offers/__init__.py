"""Who offers what right now: signed offers from gossip, and the live state of their nodes.

`intake` decides what is worth a look, `versions` which of two offers of a node counts, `pool` who
makes room in a full book. `table` holds one model's offers as columns, `index` finds the table of a
model, `seating` counts our own leases, and `book` joins them.
All of it is synchronous state without I/O: `OfferBook` is what others use.
"""

from coordinator.market.offers.book import OfferBook, OfferOutcome, OfferVerdict
from coordinator.market.offers.entry import ModelState, NodeEntry

__all__ = ["ModelState", "NodeEntry", "OfferBook", "OfferOutcome", "OfferVerdict"]
