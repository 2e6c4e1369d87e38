"""Our own leases in the book: they count once, from their grant to their end."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from coordinator.market.offers.table import BUSY
from protocol.ids import LeaseId
from tests.coordinator.market_makers import MODEL, NOW_MS, Market, node, node_offer

LEASES = [LeaseId(f"lease {number}") for number in range(10)]


def busy(market: Market) -> float:
    """Jobs at the first node, as matching reads them."""
    table = market.book.table(MODEL)
    assert table is not None
    return float(table.rows().values[BUSY, table.row_of[node(1)]])


def test_our_own_leases_count_until_they_end() -> None:
    market = Market()
    market.add(1)
    for lease in LEASES[:2]:
        market.book.grant(lease, node(1), MODEL, expires_at_ms=NOW_MS + 10_000)
    market.book.grant(LEASES[0], node(1), MODEL, expires_at_ms=NOW_MS + 10_000)
    assert busy(market) == 2
    market.book.release(LEASES[0])
    market.book.release(LEASES[0])
    market.book.release(LEASES[9])
    assert busy(market) == 1
    market.book.expire(NOW_MS + 10_000)
    assert busy(market) == 0


def test_leases_of_a_node_that_offers_only_later_count_from_then_on() -> None:
    """A restarted coordinator knows the leases before the nodes."""
    market = Market()
    for lease in LEASES[:3]:
        market.book.grant(lease, node(1), MODEL, expires_at_ms=NOW_MS + 60_000)
    market.book.release(LEASES[0])
    market.add(1)
    assert busy(market) == 2
    market.load(1, running=2)
    assert busy(market) == 2, "the node reports the same jobs"
    market.book.release(LEASES[1])
    assert busy(market) == 1


def test_a_report_counts_others_jobs_and_ours_only_once() -> None:
    market = Market()
    market.add(1)
    for lease in LEASES[:2]:
        market.book.grant(lease, node(1), MODEL, expires_at_ms=NOW_MS + 60_000)
    market.load(1, running=5)
    assert busy(market) == 5
    market.book.release(LEASES[0])
    assert busy(market) == 4


def test_jobs_that_follow_each_other_quickly_do_not_fill_a_node() -> None:
    market = Market()
    market.add(1)
    for old, new in pairwise(LEASES):
        market.book.grant(old, node(1), MODEL, expires_at_ms=NOW_MS + 60_000)
        market.load(1, running=1)  # written before the old job ended and the new one began
        market.book.release(old)
        market.book.grant(new, node(1), MODEL, expires_at_ms=NOW_MS + 60_000)
        assert busy(market) == 1
        market.book.release(new)


@pytest.mark.parametrize(
    "changes",
    [[{"models": ()}, {}], [{"incarnation_ms": NOW_MS - 10}]],
    ids=["withdrawn and offered again", "another process"],
)
def test_a_node_frees_no_seats_by_changing_its_offer(changes: list[dict[str, Any]]) -> None:
    market = Market()
    market.add(1)
    for lease in LEASES[:3]:
        market.book.grant(lease, node(1), MODEL, expires_at_ms=NOW_MS + 60_000)
    for sequence, change in enumerate(changes, start=2):
        offer = node_offer(1, sequence=sequence, issued_at_ms=NOW_MS + sequence)
        market.insert(1, replace(offer, **change))
    assert busy(market) == 3
    market.book.release(LEASES[0])
    assert busy(market) == 2
    market.book.expire(NOW_MS + 60_000)
    assert busy(market) == 0
