"""The small pool of offers whose nodes we have not met, and the networks that nodes claim."""

import random
from dataclasses import replace

import pytest

from coordinator.market.offers import OfferBook, OfferOutcome, OfferVerdict
from coordinator.market.offers.pool import cost_of, network_of
from coordinator.market.reputation import Reputation
from protocol.errors import Code
from protocol.ids import Digest
from protocol.limits import KIB
from protocol.offers import LoadReport
from tests.coordinator.market_makers import NOW_MS, model_offer, node, node_offer, sealed


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("/ip4/192.0.2.77/tcp/4001/p2p/12D3", "192.0.2.0/24"),
        ("/ip6/2001:db8:1:2::9/tcp/4001", "2001:db8:1::/56"),
        ("/dns4/Node.Example.org/tcp/4001", "node.example.org"),
        ("/ip4/relay/tcp/1", ""),
        ("/ip4/999.1.1.1/tcp/1", ""),
        ("nonsense", ""),
    ],
)
def test_an_address_tells_its_network(address: str, network: str) -> None:
    assert network_of((address,)) == network


def test_no_address_is_a_network_of_its_own() -> None:
    assert network_of(()) == ""


# What one offer of the flood below costs: three of them fill the pool.
SOME = 3
COST = cost_of(sealed(1, node_offer(1)))


def small_book() -> OfferBook:
    reputation = Reputation(rng=random.Random(1))
    return OfferBook(reputation, unproven_bytes_max=SOME * COST + COST // 2)


def hand_on(book: OfferBook, number: int, via: int, at_ms: int = NOW_MS) -> OfferVerdict:
    """The offer of a node, as a neighbour brings it. Each is in a network of its own."""
    offer = node_offer(number, address=f"/ip4/10.0.{number}.1/tcp/1")
    return book.accept(sealed(number, offer).raw, now_ms=at_ms, via=node(via))


def test_a_flood_of_free_keys_stays_in_its_pool_whatever_addresses_it_names() -> None:
    book = small_book()
    outcomes = [hand_on(book, number, via=99).outcome for number in range(10)]
    assert outcomes == [OfferOutcome.LISTED] * SOME + [OfferOutcome.REFUSED] * (10 - SOME)
    assert len(book) == SOME


def test_an_offer_of_another_neighbour_takes_the_place_of_one_of_the_flood() -> None:
    book = small_book()
    for number in range(SOME):
        hand_on(book, number, via=99)
    assert hand_on(book, 50, via=98).outcome is OfferOutcome.LISTED
    assert book.get(node(0)) is None, "the oldest of the flood"
    assert hand_on(book, 0, via=99).code is Code.RATE_LIMITED, "and it is not taken again"


def test_nodes_that_are_attached_are_not_in_the_pool() -> None:
    book = small_book()
    for number in range(10):
        assert hand_on(book, number, via=number).outcome is OfferOutcome.LISTED
        assert book.apply_load(node(number), LoadReport(NOW_MS - 60_000, False, ()))
    for number in range(100, 110):
        hand_on(book, number, via=99)
    assert all(book.get(node(number)) for number in range(10))


def test_a_node_that_detaches_is_in_the_pool_again() -> None:
    book = small_book()
    for number in range(10):
        hand_on(book, number, via=number)
        book.apply_load(node(number), LoadReport(NOW_MS - 60_000, False, ()))
    for number in range(10):
        book.detach(node(number), now_ms=NOW_MS)
    assert len(book) == SOME


def test_a_node_that_grows_within_the_pool_is_counted_anew() -> None:
    book = small_book()
    for number in range(SOME):
        hand_on(book, number, via=number)
    models = tuple(model_offer(name=f"m{n}", digest=Digest(f"{n:064x}")) for n in range(30))
    large = replace(node_offer(1, sequence=2), models=models)
    assert cost_of(sealed(1, large)) > 3 * COST
    book.accept(sealed(1, large).raw, now_ms=NOW_MS, via=node(1))
    assert len(book) < SOME


@pytest.mark.parametrize("models", [1, 8, 40])
def test_the_cost_of_an_offer_counts_its_models(models: int) -> None:
    offers = tuple(model_offer(name=f"m{n}", digest=Digest(f"{n:064x}")) for n in range(models))
    assert cost_of(sealed(1, replace(node_offer(1), models=offers))) >= models * 3 * KIB
