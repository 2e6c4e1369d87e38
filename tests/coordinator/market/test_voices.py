"""How much reports count, and what a node's own friends can make of it."""

import random

import pytest

from coordinator.market.breaker import ACCUSERS_TO_OPEN, BreakerState
from coordinator.market.client_waits import CLIENTS_MAX, NODES_MAX, ClientWaits
from coordinator.market.reputation import Reputation, Source
from coordinator.market.voices import HALF_LIFE_MS, Voices
from protocol.blame import Blame
from protocol.errors import Code
from protocol.ids import PeerId
from tests.coordinator.market_makers import NOW_MS, key, node

CLIENT = key(40).peer_id


def weigh(
    voices: Voices, client: PeerId = CLIENT, stake_nano: int = 100, now_ms: int = NOW_MS
) -> float:
    return voices.weigh(node(1), client, at_stake_nano=stake_nano, now_ms=now_ms)


def test_free_jobs_and_jobs_from_oneself_count_for_nothing() -> None:
    voices = Voices()
    assert weigh(voices, stake_nano=0) == 0.0
    assert weigh(voices, client=node(1)) == 0.0


def test_each_further_report_of_one_client_counts_less() -> None:
    voices = Voices()
    assert [weigh(voices) for _ in range(3)] == pytest.approx([1.0, 1 / 2, 1 / 3])
    assert weigh(voices, client=key(41).peer_id) == 1.0


def test_a_client_that_was_silent_for_long_is_heard_again() -> None:
    voices = Voices()
    weigh(voices)
    assert weigh(voices, now_ms=NOW_MS + 20 * HALF_LIFE_MS) == pytest.approx(1.0, abs=0.01)


def test_the_pairs_that_are_remembered_are_bounded() -> None:
    voices = Voices(pairs_max=2)
    for client in (2, 3, 4):
        weigh(voices, client=key(client).peer_id)
    assert weigh(voices, client=key(4).peer_id) == 1 / 2
    assert weigh(voices, client=key(2).peer_id) == 1.0, "the oldest was forgotten"


def test_three_hundred_self_made_receipts_do_not_wash_a_cutting_node_clean() -> None:
    """Of ten honest clients' jobs it cut four; then its own client buys 300 cheap ones."""
    reputation, voices = Reputation(rng=random.Random(1)), Voices()
    for number in range(10):
        source = Source(key(number).peer_id, weigh(voices, client=key(number).peer_id))
        if number < 4:
            reputation.record_code(node(1), Code.NODE_LOST, Blame.FAILURE, source, now_ms=NOW_MS)
        else:
            reputation.record_success(node(1), source, now_ms=NOW_MS)

    def success_rate() -> float:
        standing = reputation.standing(node(1), now_ms=NOW_MS)
        assert standing is not None
        return standing.success_rate

    before = success_rate()
    for _ in range(300):
        source = Source(CLIENT, weigh(voices), is_first_hand=False)
        reputation.record_success(node(1), source, now_ms=NOW_MS)
    assert success_rate() - before < 0.1
    for _ in range(300):
        reputation.record_success(
            node(1), Source(CLIENT, weigh(voices, stake_nano=0), is_first_hand=False), now_ms=NOW_MS
        )
    assert success_rate() - before < 0.1, "free ones add nothing"


def test_one_strangers_reports_do_not_open_a_breaker_and_several_do() -> None:
    reputation = Reputation(rng=random.Random(1))

    def accuse(client: int) -> BreakerState:
        source = Source(key(client).peer_id, is_first_hand=False)
        reputation.record_code(node(1), Code.NODE_LOST, Blame.FAILURE, source, now_ms=NOW_MS)
        standing = reputation.standing(node(1), now_ms=NOW_MS)
        assert standing is not None
        return standing.breaker

    assert {accuse(1) for _ in range(20)} == {BreakerState.CLOSED}
    states = [accuse(client) for _ in range(3) for client in range(ACCUSERS_TO_OPEN)]
    assert states[-1] is BreakerState.OPEN


def test_six_busy_receipts_of_one_client_keep_the_node_from_that_client_only() -> None:
    waits = ClientWaits()
    for _ in range(6):
        waits.on_refusal(CLIENT, node(1), NOW_MS, retry_after_ms=5_000, jitter=0.5)
    assert waits.nodes(CLIENT, NOW_MS) == {node(1): NOW_MS + 5_000}
    assert waits.nodes(key(41).peer_id, NOW_MS) == {}
    assert waits.nodes(CLIENT, NOW_MS + 5_000) == {}


def test_an_answer_ends_the_wait() -> None:
    waits = ClientWaits()
    waits.on_refusal(CLIENT, node(1), NOW_MS, retry_after_ms=None, jitter=0.5)
    waits.on_success(CLIENT, node(1))
    assert waits.nodes(CLIENT, NOW_MS) == {}


def test_the_waits_that_are_remembered_are_bounded() -> None:
    waits = ClientWaits()
    for number in range(NODES_MAX + 5):
        waits.on_refusal(CLIENT, PeerId(f"node {number}"), NOW_MS, retry_after_ms=9_000, jitter=0.5)
    assert len(waits.nodes(CLIENT, NOW_MS)) == NODES_MAX
    for number in range(CLIENTS_MAX):
        waits.on_refusal(
            PeerId(f"client {number}"), node(1), NOW_MS, retry_after_ms=9_000, jitter=0.5
        )
    assert waits.nodes(CLIENT, NOW_MS) == {}, "the client longest unheard of was forgotten"
