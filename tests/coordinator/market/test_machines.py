"""A failure of a node counts against its address block only if the node has no record."""

import random
from dataclasses import replace

from coordinator.market.market import Market
from coordinator.market.matching import Reason
from coordinator.market.offers import OfferBook
from coordinator.market.reputation import Reputation
from protocol.blame import Blame, Observation
from protocol.envelope import seal
from protocol.errors import Code
from protocol.ids import LeaseId
from protocol.messages import Lease
from protocol.offers import LoadReport, ModelLoad
from protocol.pricing import Units
from protocol.services import QuoteAsk, QuoteReply
from tests.clocks import HandClock
from tests.coordinator.market_makers import (
    CREDIT,
    MODEL,
    NOW_MS,
    key,
    model_offer,
    node,
    node_offer,
)
from tests.protocol.makers import CLIENT, make_lease, make_request

BLOCK = "/ip4/10.0.9.{}/tcp/4001"
# A node elsewhere, which is dear.
OUTSIDER = 99
DEAR = 100 * CREDIT
PRICED = Units(input_tokens=10_000, output_tokens=10_000)
ANSWERED = Observation(
    code=None,
    blame=None,
    first_output_ms=10.0,
    total_ms=20.0,
    delivered=PRICED,
    has_receipt=True,
)
CRASHED = replace(ANSWERED, code=Code.NODE_LOST, blame=Blame.FAILURE, has_receipt=False)


class Block:
    """A market whose nodes are all in one address block, but for a dear one elsewhere."""

    def __init__(self, *nodes: int) -> None:
        self.clock = HandClock(wall_ms=NOW_MS)
        reputation = Reputation(rng=random.Random(1))
        self.market = Market(
            OfferBook(reputation),
            reputation,
            clock=self.clock,
            rng=random.Random(2),
            stopwatch_ns=lambda: 0,
        )
        self.nodes = nodes
        self.offer()

    def offer(self) -> None:
        """All nodes renew their offers."""
        now_ms = self.clock.now_ms()
        for number in (*self.nodes, OUTSIDER):
            is_outside = number == OUTSIDER
            offer = node_offer(
                number,
                model_offer(slots=64, price_nano=DEAR if is_outside else CREDIT),
                sequence=now_ms - NOW_MS,
                issued_at_ms=now_ms,
                address="/ip4/10.7.7.7/tcp/4001" if is_outside else BLOCK.format(number),
            )
            verdict = self.market.book.insert(seal(key(number), offer), now_ms=now_ms)
            assert verdict.code is None, verdict

    def pass_s(self, seconds: float) -> None:
        self.clock.pass_s(seconds)
        self.offer()

    def lease(self, number: int) -> Lease:
        lease = make_lease(seal(CLIENT, make_request()))
        return replace(lease, node=node(number), issued_at_ms=self.clock.now_ms())

    def answer(self, number: int, times: int) -> None:
        for _ in range(times):
            self.market.judge(self.lease(number), None, ANSWERED)

    def crash(self, number: int, *, jobs: int) -> None:
        """One crash, which ends all jobs that are under way."""
        leases = [self.lease(number) for _ in range(jobs)]
        self.clock.pass_s(1)
        for lease in leases:
            self.market.judge(lease, None, CRASHED)

    def blocked(self) -> dict[int, set[str]]:
        """By node, why it gets no jobs now."""
        rejected = {each.node: each.reasons for each in self._quote().rejections}
        return {number: set(rejected.get(node(number), ())) for number in self.nodes}

    def last_resorts(self) -> set[int]:
        """Nodes that get jobs only where the dear one cannot take them."""
        places = [candidate.node for candidate in self._quote().candidates]
        behind = places[places.index(node(OUTSIDER)) + 1 :]
        return {number for number in self.nodes if node(number) in behind}

    def _quote(self) -> QuoteReply:
        request = make_request()
        return self.market.quote(QuoteAsk(MODEL, request.task, Units(10, 10), Units(10, 10)))


def test_one_crash_after_a_quiet_hour_blocks_no_neighbour() -> None:
    """Records faded until every node of the block was a stranger again: the next crash, with three
    jobs under way, shut the whole block out for two minutes."""
    block = Block(1, 2, 3)
    for number in block.nodes:
        block.answer(number, 20)
    block.pass_s(3_600)
    block.crash(1, jobs=8)
    reasons = block.blocked()
    assert reasons[1] == {Reason.BREAKER_OPEN.value}
    assert reasons[2] == reasons[3] == set()
    assert block.last_resorts() == set()
    block.pass_s(10)
    assert block.blocked()[1] == set(), "and the node itself may be tried again"
    assert block.last_resorts() == set()


def test_strangers_that_fail_put_their_block_behind_all_others() -> None:
    """And no further: a newcomer that happens to be their neighbour gets what no other can take."""
    block = Block(1, 2, 3)
    assert block.last_resorts() == set()
    block.crash(1, jobs=3)
    assert block.blocked()[1] == {Reason.BREAKER_OPEN.value}
    assert block.last_resorts() == {2, 3}


def test_a_node_that_goes_on_failing_after_the_quiet_is_a_stranger() -> None:
    block = Block(1, 2)
    block.answer(1, 20)
    block.pass_s(3_600)
    block.crash(1, jobs=8)
    block.pass_s(10)
    block.crash(1, jobs=3)
    assert block.last_resorts() == {2}


def test_a_node_earns_whole_seats_by_jobs_that_it_has_and_not_by_those_that_it_reports() -> None:
    block = Block(1, 2)
    book, digest = block.market.book, model_offer().manifest_digest
    for number, leases in ((1, 8), (2, 1)):
        for job in range(leases):
            lease_id = LeaseId(f"{number}{job:025}")
            book.grant(
                lease_id, node(number), digest, expires_at_ms=NOW_MS + 60_000, is_batch=False
            )
        load = ModelLoad(digest, running=64, queued=0, available=True)
        entry = book.get(node(number))
        assert entry is not None
        report = LoadReport(entry.offer.incarnation_ms, draining=False, models=(load,))
        assert book.apply_load(node(number), report)
        block.answer(number, times=8)
    seats = {each.node: each.seats for each in block.market.reputation.snapshot(now_ms=NOW_MS)}
    assert seats[node(1)] == 4 + 8
    assert seats[node(2)] == 4 + 2 + 1, "1 + 1/2 + 1/3, and then quarters"
