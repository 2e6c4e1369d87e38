"""The offer book: listing, succession, conflicts, expiry, live state and room."""

import random
from dataclasses import replace

import pytest

from coordinator.market.offers import OfferBook, OfferOutcome
from coordinator.market.offers import book as book_module
from coordinator.market.offers.book import SUSPENSION_MS
from coordinator.market.offers.table import BUSY, FLAGS, RTT_MS, SUSPENDED, UNREACHABLE
from coordinator.market.reputation import Reputation
from protocol.envelope import Signed
from protocol.errors import Code
from protocol.ids import Digest, LeaseId, sha256_digest
from protocol.limits import CLOCK_SKEW_MAX_MS, OFFER_LIFETIME_MAX_MS
from protocol.offers import LoadReport
from protocol.services import OFFER_SHARDS, offer_topic, shard_of
from tests.coordinator.market_makers import (
    MODEL,
    NAME,
    NOW_MS,
    Market,
    model_offer,
    node,
    node_offer,
    sealed,
)

OTHER_MODEL = sha256_digest(b"another model")
LEASES = [LeaseId(f"lease {number}") for number in range(10)]


def column(market: Market, number: int, index: int, model: str = MODEL) -> float:
    table = market.book.table(model)
    assert table is not None
    return float(table.rows().values[index, table.row_of[node(number)]])


def flags(market: Market, number: int) -> int:
    table = market.book.table(MODEL)
    assert table is not None
    return int(table.rows().codes[FLAGS, table.row_of[node(number)]])


def test_a_signed_offer_is_listed_under_its_digest_and_its_name() -> None:
    book = Market().book
    verdict = book.accept(sealed(1, node_offer(1)).raw, now_ms=NOW_MS, via=node(2))
    assert (verdict.outcome, verdict.node, verdict.is_news) == (OfferOutcome.LISTED, node(1), True)
    for model in (MODEL, NAME):
        table = book.table(model)
        assert table is not None
        assert table.nodes == [node(1)]
    assert book.table("unknown") is None
    assert book.models() == {NAME: 1}
    entry = book.get(node(1))
    assert entry is not None
    assert entry.signed.raw == sealed(1, node_offer(1)).raw, "clients check the node's own bytes"


def test_a_refusal_says_why_and_is_not_handed_on() -> None:
    verdict = Market().book.accept(b"\xc0", now_ms=NOW_MS, via=node(2))
    assert (verdict.outcome, verdict.code, verdict.is_news) == (
        OfferOutcome.REFUSED,
        Code.MALFORMED,
        False,
    )
    assert verdict.message


def test_the_same_offer_over_two_paths_is_taken_once() -> None:
    book = Market().book
    raw = sealed(1, node_offer(1)).raw
    book.accept(raw, now_ms=NOW_MS, via=node(2))
    assert book.accept(raw, now_ms=NOW_MS, via=node(3)).outcome is OfferOutcome.DUPLICATE


def test_gossip_of_an_offer_that_its_node_handed_over_first_is_passed_on_once() -> None:
    """A node attaches and publishes at once, and others have heard of it by neither."""
    book = Market().book
    raw = sealed(1, node_offer(1)).raw
    own = offer_topic(shard_of(node(1)))
    assert book.accept(raw, now_ms=NOW_MS, via=node(1)).is_news
    first = book.accept(raw, now_ms=NOW_MS, via=node(1), topic=own)
    assert (first.outcome, first.code, first.is_news) == (OfferOutcome.HEARD, Code.REPLAYED, True)
    again = [book.accept(raw, now_ms=NOW_MS, via=node(n), topic=own) for n in (1, 2, 2)]
    assert [verdict.outcome for verdict in again] == [OfferOutcome.DUPLICATE] * 3
    # Attaching with it again does not begin anew.
    book.accept(raw, now_ms=NOW_MS, via=node(1))
    assert not book.accept(raw, now_ms=NOW_MS, via=node(2), topic=own).is_news


def test_what_came_by_gossip_first_is_not_passed_on_again() -> None:
    book = Market().book
    raw = sealed(1, node_offer(1)).raw
    own = offer_topic(shard_of(node(1)))
    assert book.accept(raw, now_ms=NOW_MS, via=node(2), topic=own).is_news
    assert not book.accept(raw, now_ms=NOW_MS, via=node(1)).is_news
    assert not book.accept(raw, now_ms=NOW_MS, via=node(3), topic=own).is_news


def test_an_offer_that_its_node_handed_over_is_not_passed_on_elsewhere_or_late() -> None:
    book = Market().book
    old, new = (sealed(1, node_offer(1, sequence=n)).raw for n in (1, 2))
    own = shard_of(node(1))
    book.accept(old, now_ms=NOW_MS, via=node(1))
    book.accept(new, now_ms=NOW_MS, via=node(1))
    wrong = offer_topic((own + 1) % OFFER_SHARDS)
    assert not book.accept(new, now_ms=NOW_MS, via=node(2), topic=wrong).is_news
    assert not book.accept(old, now_ms=NOW_MS, via=node(2), topic=offer_topic(own)).is_news
    assert book.accept(new, now_ms=NOW_MS, via=node(2), topic=offer_topic(own)).is_news


def test_a_changed_offer_replaces_the_old_rows() -> None:
    market = Market()
    market.insert(1, node_offer(1, model_offer(), model_offer(name="b", digest=OTHER_MODEL)))
    changed = node_offer(1, model_offer(name="b", digest=OTHER_MODEL), sequence=2)
    assert market.insert(1, changed).outcome is OfferOutcome.UPDATED
    assert market.book.table(MODEL) is None
    assert market.book.table(NAME) is None
    assert market.book.models() == {"b": 1}
    assert market.insert(1, node_offer(1)).code is Code.OFFER_REGRESSED


def test_an_offer_without_models_withdraws_all() -> None:
    market = Market()
    market.add(1)
    market.insert(1, replace(node_offer(1), models=(), sequence=2))
    assert market.book.models() == {}
    assert market.book.get(node(1)) is not None


def test_a_ghost_of_a_restarted_node_is_refused() -> None:
    market = Market()
    market.insert(1, node_offer(1, incarnation_ms=NOW_MS - 1_000))
    ghost = node_offer(1, incarnation_ms=NOW_MS - 90_000, sequence=99, issued_at_ms=NOW_MS - 1_500)
    assert market.insert(1, ghost).code is Code.OFFER_REGRESSED


def test_a_ghost_is_refused_even_after_the_last_offer_expired() -> None:
    market = Market()
    market.insert(1, node_offer(1, incarnation_ms=NOW_MS - 1_000, lifetime_ms=1_000))
    market.now_ms += 1_000 + CLOCK_SKEW_MAX_MS
    assert market.book.expire(market.now_ms) == (node(1),)
    ghost = node_offer(1, incarnation_ms=NOW_MS - 90_000, issued_at_ms=NOW_MS - 1_500)
    assert market.insert(1, ghost).code is Code.OFFER_REGRESSED


def test_two_nodes_with_one_key_are_suspended_with_the_reason_shown() -> None:
    market = Market()
    market.insert(1, node_offer(1, incarnation_ms=NOW_MS - 1_000))
    market.now_ms += 60_000
    older = node_offer(1, incarnation_ms=NOW_MS - 500_000, sequence=9, issued_at_ms=market.now_ms)
    verdict = market.insert(1, older)
    assert (verdict.outcome, verdict.code, verdict.is_news) == (
        OfferOutcome.CONFLICT,
        Code.OFFER_CONFLICT,
        False,
    )
    entry = market.book.get(node(1))
    assert entry is not None
    assert "key" in entry.suspension
    assert flags(market, 1) == SUSPENDED
    younger = node_offer(
        1,
        incarnation_ms=NOW_MS - 1_000,
        sequence=2,
        issued_at_ms=market.now_ms,
        lifetime_ms=240_000,
    )
    assert market.insert(1, younger).outcome is OfferOutcome.UPDATED
    assert flags(market, 1) == SUSPENDED, "a refresh does not end it"


def test_a_suspension_ends_when_the_other_process_is_gone() -> None:
    market = Market()
    market.insert(1, node_offer(1, incarnation_ms=NOW_MS - 1_000))
    market.now_ms += 60_000
    market.insert(1, node_offer(1, incarnation_ms=0, issued_at_ms=market.now_ms))
    for _ in range(5):
        market.now_ms += SUSPENSION_MS // 5
        market.refresh()
        market.book.expire(market.now_ms)
    assert flags(market, 1) == 0


def test_an_offer_is_gone_when_it_expires() -> None:
    market = Market()
    market.insert(1, node_offer(1, lifetime_ms=10_000))
    market.insert(2, node_offer(2, lifetime_ms=20_000))
    gone_ms = NOW_MS + 10_000 + CLOCK_SKEW_MAX_MS
    assert market.book.expire(gone_ms - 1) == ()
    assert market.book.expire(gone_ms) == (node(1),)
    assert [entry.node for entry in market.book] == [node(2)]


def test_a_mass_expiry_is_done_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "EXPIRE_MAX", 3)
    market = Market()
    for number in range(7):
        market.add(number)
    market.now_ms += OFFER_LIFETIME_MAX_MS
    sizes = [len(market.book.expire(market.now_ms)) for _ in range(4)]
    assert sizes == [3, 3, 1, 0]
    assert len(market.book) == 0


def test_a_refresh_prolongs_an_offer() -> None:
    market = Market()
    market.insert(1, node_offer(1, lifetime_ms=10_000))
    market.insert(1, node_offer(1, sequence=2, lifetime_ms=100_000))
    assert market.book.expire(NOW_MS + 50_000) == ()


def test_a_clock_that_runs_ahead_earns_no_longer_life() -> None:
    market = Market()
    ahead = node_offer(
        1, issued_at_ms=NOW_MS + CLOCK_SKEW_MAX_MS, lifetime_ms=OFFER_LIFETIME_MAX_MS
    )
    market.insert(1, ahead)
    entry = market.book.get(node(1))
    assert entry is not None
    assert entry.expires_at_ms == NOW_MS + OFFER_LIFETIME_MAX_MS


def test_load_reports_show_in_the_columns() -> None:
    market = Market()
    market.add(1)
    assert market.load(1, 3, 2, draining=True)
    assert column(market, 1, BUSY) == 5
    assert column(market, 1, BUSY, NAME) == 5
    assert flags(market, 1) != 0
    assert market.load(1, 0)
    assert flags(market, 1) == 0


def test_a_report_of_another_incarnation_is_ignored() -> None:
    market = Market()
    market.add(1)
    report = LoadReport(NOW_MS - 1, False, ())
    assert not market.book.apply_load(node(1), report)
    assert not market.book.apply_load(node(2), report)


def test_a_lost_node_gets_no_jobs_until_it_speaks_again() -> None:
    market = Market()
    market.add(1)
    market.load(1, 2)
    market.now_ms += 1_000
    market.book.detach(node(1), now_ms=market.now_ms)
    market.book.detach(node(2), now_ms=market.now_ms)
    assert flags(market, 1) == UNREACHABLE
    assert column(market, 1, BUSY) == 0
    market.insert(1, node_offer(1, sequence=2, issued_at_ms=market.now_ms - 500))
    assert flags(market, 1) == UNREACHABLE, "an offer that gossip brings late proves nothing"
    market.insert(1, node_offer(1, sequence=3, issued_at_ms=market.now_ms + 500))
    assert flags(market, 1) == 0


def test_a_restart_forgets_the_load_but_not_the_round_trip() -> None:
    market = Market()
    market.add(1, rtt_ms=30.0)
    market.load(1, 4)
    market.insert(1, node_offer(1, incarnation_ms=NOW_MS - 10))
    assert column(market, 1, BUSY) == 0
    assert column(market, 1, RTT_MS) == 30.0


def test_round_trips_are_smoothed() -> None:
    market = Market()
    market.add(1, rtt_ms=20.0)
    market.book.set_rtt(node(1), 100.0)
    market.book.set_rtt(node(9), 1.0)
    assert column(market, 1, RTT_MS) == 30.0


def full_book(nodes_max: int) -> OfferBook:
    return OfferBook(Reputation(rng=random.Random(1)), nodes_max=nodes_max)


def insert_at(book: OfferBook, number: int, address: str) -> OfferOutcome:
    offer = node_offer(number, address=address)
    signed = Signed(offer, node(number), Digest(f"{number:064x}"), b"")
    return book.insert(signed, now_ms=NOW_MS).outcome


def test_a_flood_from_one_network_evicts_itself() -> None:
    book = full_book(10)
    for number in range(5):
        assert insert_at(book, number, f"/ip4/10.0.{number}.1/tcp/1") is OfferOutcome.LISTED
    outcomes = [insert_at(book, 100 + n, f"/ip4/6.6.6.{n}/tcp/1") for n in range(50)]
    assert outcomes.count(OfferOutcome.LISTED) == 5
    assert all(book.get(node(number)) for number in range(5))
    assert insert_at(book, 7, "/ip4/10.0.7.1/tcp/1") is OfferOutcome.LISTED, "a newcomer finds room"
    assert len(book) == 10


def test_an_evicted_node_may_come_back_with_the_same_offer() -> None:
    book = full_book(2)
    raws = [sealed(n, node_offer(n, address=f"/ip4/6.6.6.{n}/tcp/1")).raw for n in range(2)]
    for raw in raws:
        book.accept(raw, now_ms=NOW_MS, via=node(9))
    insert_at(book, 5, "/ip4/10.0.5.1/tcp/1")
    assert book.get(node(0)) is None
    book.set_rtt(node(5), 1.0)
    assert book.accept(raws[1], now_ms=NOW_MS, via=node(9)).outcome is OfferOutcome.DUPLICATE
    again = book.accept(raws[0], now_ms=NOW_MS, via=node(9))
    assert again.code is Code.RATE_LIMITED, "no room, but not mistaken for a repetition"


def test_nodes_that_we_have_reached_are_never_evicted() -> None:
    book = full_book(3)
    for number in range(3):
        insert_at(book, number, "/ip4/10.0.0.1/tcp/1")
        book.set_rtt(node(number), 5.0)
    assert insert_at(book, 7, "/ip4/10.0.7.1/tcp/1") is OfferOutcome.REFUSED
    assert len(book) == 3


def test_pages_list_every_node_once_in_order() -> None:
    market = Market()
    for number in range(7):
        market.add(number)
    market.add(8, model_offer(name="b", digest=OTHER_MODEL))
    seen: list[str] = []
    while page := market.book.page(after=seen[-1] if seen else "", limit=3):
        seen += [entry.node for entry in page]
    assert seen == sorted(entry.node for entry in market.book)
    assert [entry.node for entry in market.book.page(model="b", limit=9)] == [node(8)]
    assert market.book.page(model="c", limit=9) == []


def test_reputation_slots_are_given_back() -> None:
    reputation = Reputation(rng=random.Random(1), nodes_max=4)
    book = OfferBook(reputation, nodes_max=4)
    for number in range(40):
        insert_at(book, number, f"/ip4/10.0.{number}.1/tcp/1")
        book.expire(NOW_MS + 10 * OFFER_LIFETIME_MAX_MS)
    assert len(book) == 0
    assert len(reputation) <= 4
