"""How much a coordinator does at once and remembers, and how long its leases can be opened.

The defaults, with their reasons, stand where they are used; no operator sets others. A simulated
market draws them from its seed, because a fault may hide behind a bound that is never reached.
"""

from dataclasses import dataclass

from coordinator.db.writer import BATCH_MAX
from coordinator.leasing.clients import ALL_WINDOWS, CLIENTS_MAX, WindowRange
from coordinator.leasing.restoring import ANSWERS_MAX, ENDED_MAX
from coordinator.settling.receipt_service import REMEMBERED_MAX, SWEEP_MAX
from protocol.limits import LEASE_OPEN_WITHIN_MS

# Offers, holds and silent clients are looked through this often; their own times are much longer.
SWEEP_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class MarketBounds:
    """`sweep_max` and `batch_max` are receipts and postings at once; settled receipts and clients
    are remembered; a restarted process reads answers of nodes and ended leases of clients."""

    sweep_every_s: float = SWEEP_EVERY_S
    sweep_max: int = SWEEP_MAX
    batch_max: int = BATCH_MAX
    receipts_remembered_max: int = REMEMBERED_MAX
    clients_remembered_max: int = CLIENTS_MAX
    answers_restored_max: int = ANSWERS_MAX
    leases_restored_max: int = ENDED_MAX
    lease_open_within_ms: int = LEASE_OPEN_WITHIN_MS
    windows: WindowRange = ALL_WINDOWS


DEFAULT_BOUNDS = MarketBounds()
