"""The tables by digest and by name: who is in them, and that they mirror the book."""

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.market.offers import OfferBook
from coordinator.market.reputation import Reputation
from protocol.envelope import Signed
from protocol.ids import Digest, LeaseId, sha256_digest
from tests.coordinator.market_makers import (
    MODEL,
    NAME,
    NOW_MS,
    Market,
    model_offer,
    node,
    node_offer,
)

OTHER_MODEL = sha256_digest(b"another model")


def test_a_catalogued_name_belongs_to_its_digests() -> None:
    book = OfferBook(Reputation(rng=random.Random(1)), catalogue={NAME: frozenset({MODEL})})
    cuckoo = node_offer(2, model_offer(digest=OTHER_MODEL, price_nano=1))
    for number, offer in ((1, node_offer(1)), (2, cuckoo)):
        book.insert(Signed(offer, node(number), Digest(f"{number:064x}"), b""), now_ms=NOW_MS)
    by_name, by_digest = book.table(NAME), book.table(OTHER_MODEL)
    assert by_name is not None
    assert by_digest is not None
    assert by_name.nodes == [node(1)]
    assert by_digest.nodes == [node(2)]


def test_a_name_that_looks_like_a_digest_is_not_mistaken_for_it() -> None:
    market = Market()
    market.insert(1, node_offer(1, model_offer(name=MODEL, digest=OTHER_MODEL)))
    assert market.book.table(MODEL) is None
    entry = market.book.get(node(1))
    assert entry is not None
    assert entry.model(MODEL) is None


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tables_always_mirror_the_entries(data: st.DataObject) -> None:
    market = Market()
    sequence = 1
    for _ in range(data.draw(st.integers(1, 25))):
        number = data.draw(st.integers(0, 4))
        sequence += 1
        match data.draw(st.sampled_from(["offer", "load", "rtt", "grant", "detach", "expire"])):
            case "offer":
                models = data.draw(
                    st.sampled_from([(), (MODEL,), (OTHER_MODEL,), (MODEL, OTHER_MODEL)])
                )
                offers = tuple(model_offer(name=d[:9], digest=d) for d in models)
                offer = replace(
                    node_offer(number, issued_at_ms=market.now_ms, sequence=sequence), models=offers
                )
                market.insert(number, offer)
            case "load" if market.book.get(node(number)):
                market.load(number, data.draw(st.integers(0, 9)))
            case "rtt":
                market.book.set_rtt(node(number), data.draw(st.floats(0.1, 500)))
            case "grant":
                lease = LeaseId(str(sequence))
                market.book.grant(
                    lease,
                    node(number),
                    MODEL,
                    expires_at_ms=market.now_ms + 5_000,
                )
            case "detach":
                market.book.detach(node(number), now_ms=market.now_ms)
            case "expire":
                market.now_ms += data.draw(st.integers(0, 100_000))
                market.book.expire(market.now_ms)
    listed = 0
    for entry in market.book:
        for state in entry.models.values():
            for model in (state.offer.manifest_digest, state.offer.name):
                table = market.book.table(model)
                assert table is not None
                row = table.row_of[entry.node]
                assert table.rows().values[:, row].tolist() == entry.row_values(state)
                assert table.rows().codes[:, row].tolist() == entry.row_codes(state)
                listed += 1
    named = (*market.book.models(), MODEL, OTHER_MODEL)
    tables = [table for table in map(market.book.table, named) if table is not None]
    assert sum(len(table) for table in tables) == listed
    assert all(len(table) for table in tables)
