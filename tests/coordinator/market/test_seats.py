"""Earned capacity, of nodes and of machines, through the decisions that follow from it."""

import random
from dataclasses import replace

import pytest

from coordinator.market.matching import Reason, match
from coordinator.market.matching.job import Job
from coordinator.market.offers import OfferBook
from coordinator.market.reputation import Reputation, Source
from coordinator.market.seats import (
    SEATS_AT_START,
    SEATS_MAX,
    SEATS_MIN,
    after_answer,
    after_failure,
    after_refusal,
)
from protocol.blame import Blame
from protocol.envelope import Signed
from protocol.errors import Code
from protocol.ids import LeaseId, PeerId, sha256_digest
from tests.coordinator.market_makers import (
    NOW_MS,
    SOURCE,
    a_job,
    key,
    model_offer,
    node,
    node_offer,
)


def test_seats_stay_within_their_bounds() -> None:
    assert after_answer(SEATS_MAX, 1.0) == SEATS_MAX
    assert after_failure(SEATS_MIN) == SEATS_MIN
    assert after_refusal(SEATS_MIN) == SEATS_MIN
    assert after_failure(8.0) < after_refusal(8.0) < 8.0 < after_answer(8.0, 0.5)


class Strangers:
    """New nodes that claim a thousand slots each; node n of machine m listens at 10.0.m.n."""

    def __init__(self) -> None:
        self.reputation = Reputation(rng=random.Random(1))
        self.book = OfferBook(self.reputation)
        self.leases = 0

    def add(self, number: int, *, machine: int) -> PeerId:
        offer = replace(
            node_offer(number, model_offer(slots=1_000)),
            addresses=(f"/ip4/10.0.{machine}.{number}/tcp/4001",),
        )
        digest = sha256_digest(repr(offer).encode())
        self.book.insert(Signed(offer, node(number), digest, b""), now_ms=NOW_MS)
        return node(number)

    def choose(self, job: Job | None = None) -> tuple[PeerId | None, dict[Reason, int]]:
        found = match(
            job or a_job(),
            self.book,
            self.reputation,
            now_ms=NOW_MS,
            rng=random.Random(2),
        )
        return (found.candidates[0].node if found.candidates else None), found.counts

    def fill(self) -> int:
        """Lease until no node fits. Returns how many leases that were."""
        granted = 0
        while (chosen := self.choose()[0]) is not None:
            self.leases += 1
            granted += 1
            offer = self.book.get(chosen)
            assert offer is not None
            self.book.grant(
                LeaseId(f"{self.leases:026}"),
                chosen,
                next(iter(offer.models)),
                expires_at_ms=NOW_MS + 60_000,
            )
        return granted


def test_a_claim_of_a_thousand_slots_is_worth_what_it_has_answered() -> None:
    strangers = Strangers()
    liar = strangers.add(1, machine=1)
    assert strangers.fill() == SEATS_AT_START
    assert strangers.choose()[1][Reason.BUSY] == 1
    for _ in range(3):
        strangers.reputation.record_success(liar, SOURCE, now_ms=NOW_MS)
    assert strangers.fill() == 3


@pytest.mark.parametrize(
    ("weight", "at_once", "earned"),
    [
        (0.1, int(SEATS_AT_START), 4),  # half of its seats are taken, and it answers
        (0.1, 1, 1),  # more jobs of a client that has paid for many
        (0.0, int(SEATS_AT_START), 1),  # nothing was paid
    ],
)
def test_a_node_that_answers_while_its_seats_are_taken_earns_whole_ones(
    weight: float, at_once: int, earned: int
) -> None:
    reputation = Reputation(rng=random.Random(1))
    source = Source(key(5).peer_id, weight=weight, at_once=at_once)
    for _ in range(4):
        reputation.record_success(node(1), source, now_ms=NOW_MS)
    found = reputation.standing(node(1), now_ms=NOW_MS)
    assert found is not None
    assert found.seats == SEATS_AT_START + earned


def test_what_a_party_elsewhere_says_earns_what_its_voice_weighs() -> None:
    reputation = Reputation(rng=random.Random(1))
    staged = Source(key(5).peer_id, weight=0.5, is_first_hand=False, at_once=1_000)
    for _ in range(4):
        reputation.record_success(node(1), staged, now_ms=NOW_MS)
    found = reputation.standing(node(1), now_ms=NOW_MS)
    assert found is not None
    assert found.seats == SEATS_AT_START + 2


def test_a_failure_halves_what_a_node_has_earned() -> None:
    strangers = Strangers()
    fallen = strangers.add(1, machine=1)
    strangers.reputation.record_code(fallen, Code.NODE_LOST, Blame.FAILURE, SOURCE, now_ms=NOW_MS)
    assert strangers.fill() == SEATS_AT_START / 2


def test_fifty_identities_on_one_machine_get_no_more_than_the_machine() -> None:
    strangers = Strangers()
    for number in range(1, 51):
        strangers.add(number, machine=1)
    crowd = strangers.fill()
    assert strangers.choose()[1][Reason.MACHINE_UNPROVEN] == 50
    alone = Strangers()
    for number in range(1, 3):
        alone.add(number, machine=1)
    assert crowd == alone.fill(), "as many as two identities get there"


def test_a_machine_whose_new_nodes_fail_is_left_alone_with_all_of_them() -> None:
    strangers = Strangers()
    for number in range(1, 51):
        strangers.add(number, machine=1)
    honest = strangers.add(60, machine=2)
    entry = strangers.book.get(node(1))
    assert entry is not None
    for _ in range(3):
        strangers.book.machines.on_failure(entry.machine, NOW_MS, jitter=0.5)
    assert strangers.choose()[0] == honest


def test_a_bad_neighbour_does_not_harm_a_node_with_a_record() -> None:
    strangers = Strangers()
    proven = strangers.add(1, machine=1)
    for _ in range(3):
        strangers.reputation.record_success(proven, SOURCE, now_ms=NOW_MS)
    strangers.add(2, machine=1)
    entry = strangers.book.get(proven)
    assert entry is not None
    for _ in range(3):
        strangers.book.machines.on_failure(entry.machine, NOW_MS, jitter=0.5)
    chosen, _ = strangers.choose()
    assert chosen == proven


def test_the_next_attempt_prefers_another_machine() -> None:
    strangers = Strangers()
    tried = strangers.add(1, machine=1)
    for number in range(2, 20):
        strangers.add(number, machine=1)
    elsewhere = strangers.add(30, machine=2)
    again = replace(a_job(), exclude=frozenset({tried}))
    assert strangers.choose(again)[0] == elsewhere


def test_seats_move_with_a_node_to_its_new_machine() -> None:
    strangers = Strangers()
    moved = strangers.add(1, machine=1)
    strangers.fill()
    offer = replace(
        node_offer(1, model_offer(slots=1_000)),
        sequence=2,
        addresses=("/ip4/10.0.9.1/tcp/4001",),
    )
    strangers.book.insert(Signed(offer, moved, sha256_digest(b"second"), b""), now_ms=NOW_MS + 1)
    for number in range(2, 4):
        strangers.add(number, machine=1)
    assert strangers.fill() == SEATS_AT_START, "nobody else is at the old machine"


@pytest.mark.parametrize("is_first_hand", [True, False])
def test_only_what_our_own_client_saw_earns_seats_without_payment(is_first_hand: bool) -> None:
    strangers = Strangers()
    free = strangers.add(1, machine=1)
    entry = strangers.book.get(free)
    assert entry is not None
    strangers.book.machines.on_success(entry.machine, NOW_MS, weight=100.0)
    source = Source(key(5).peer_id, weight=0.0, is_first_hand=is_first_hand)
    for _ in range(8):
        strangers.reputation.record_success(free, source, now_ms=NOW_MS)
    assert strangers.fill() == SEATS_AT_START + (2 if is_first_hand else 0)
