"""Nodes and machines that go away without notice."""

from coordinator.market.steadiness import HALF_LIFE_MS, SAME_LOSS_MS, Steadiness
from protocol.messages import Constraints
from protocol.offers import ModelOffer
from tests.coordinator.market_makers import SOURCE, Market, a_job, model_offer, node, node_offer

NOW_MS = 1_000_000


def lost_at(*times_ms: int) -> Steadiness:
    steadiness = Steadiness()
    for time_ms in times_ms:
        steadiness.on_loss(time_ms)
    return steadiness


def test_one_loss_is_no_habit_and_the_second_one_soon_after_is() -> None:
    assert not lost_at(NOW_MS).unsteady_until_ms
    assert lost_at(NOW_MS, NOW_MS + 6_000).unsteady_until_ms > NOW_MS + 60_000
    assert not lost_at(NOW_MS, NOW_MS + 2 * HALF_LIFE_MS).unsteady_until_ms


def test_each_further_loss_lasts_longer() -> None:
    waits = []
    for count in range(2, 6):
        times = [NOW_MS + number * 10_000 for number in range(count)]
        waits.append(lost_at(*times).unsteady_until_ms - times[-1])
    assert waits == sorted(waits)
    assert waits[0] < waits[-1]


def test_nodes_that_go_away_together_are_one_loss_of_their_machine() -> None:
    assert not lost_at(*[NOW_MS] * 50).unsteady_until_ms
    assert lost_at(*[NOW_MS] * 50, NOW_MS + SAME_LOSS_MS).unsteady_until_ms


def cheap() -> ModelOffer:
    return model_offer(price_nano=1_000, decode_tps=1_000)


def market_with_a_cheap_node() -> Market:
    """Node 0 is cheap and fast, nodes 1 and 2 are not; all have a record."""
    market = Market()
    market.add(0, cheap())
    market.add(1)
    market.add(2)
    for number in range(3):
        record_answers(market, number)
    return market


def record_answers(market: Market, number: int, count: int = 20) -> None:
    for _ in range(count):
        market.reputation.record_success(node(number), SOURCE, now_ms=market.now_ms)


def lose(market: Market, number: int) -> None:
    entry = market.book.get(node(number))
    assert entry is not None
    market.reputation.record_loss(node(number), now_ms=market.now_ms)
    market.book.machines.on_loss(entry.machine, market.now_ms)


def test_a_node_that_goes_away_often_comes_after_steady_ones_whatever_its_price() -> None:
    market = market_with_a_cheap_node()
    assert market.first(a_job()) == node(0)
    lose(market, 0)
    market.now_ms += 6_000
    assert market.first(a_job()) == node(0)
    lose(market, 0)
    places = [c.node for c in market.match(a_job()).candidates]
    assert places[-1] == node(0)
    assert len(places) == 3
    # Its answers do not help, and time does.
    record_answers(market, 0)
    assert market.first(a_job()) != node(0)
    market.now_ms += 2 * HALF_LIFE_MS
    market.refresh()
    assert market.first(a_job()) == node(0)


def test_it_still_gets_what_no_steady_node_can_take() -> None:
    market = market_with_a_cheap_node()
    for _ in range(3):
        lose(market, 0)
        market.now_ms += 6_000
    only = Constraints(only=(node(0),))
    assert market.first(a_job(constraints=only)) == node(0)
    assert market.match(a_job(exclude=frozenset({node(1), node(2)}))).candidates[0].node == node(0)


def test_a_machine_that_goes_away_often_speaks_against_its_newcomers_only() -> None:
    market = market_with_a_cheap_node()
    market.insert(3, node_offer(3, cheap(), address="/ip4/10.0.0.7/tcp/4001"))
    market.insert(4, node_offer(4, cheap(), address="/ip4/10.0.0.8/tcp/4001"))
    record_answers(market, 4)
    for _ in range(3):
        lose(market, 0)
        market.now_ms += 6_000
    for _ in range(200):
        assert market.first(a_job()) == node(4)
    places = [candidate.node for candidate in market.match(a_job()).candidates]
    assert set(places[:3]) == {node(4), node(1), node(2)}
    assert set(places[3:]) == {node(0), node(3)}
