"""Models that are not in memory: what their load time does to a decision, and to the wait."""

import random
from dataclasses import replace

import pytest

from coordinator.market.market import FIRST_OUTPUT_FLOOR_MS, Market
from coordinator.market.matching import Job, Reason
from coordinator.market.matching.quote import quote_reply
from protocol.codec import decode, encode
from protocol.limits import LOAD_MS_MAX
from protocol.messages import Constraints, Objective, Task
from protocol.net.clock import VirtualClock
from protocol.offers import ModelOffer
from protocol.pricing import Units
from protocol.services import QuoteAsk, QuoteReply
from tests.coordinator import market_makers
from tests.coordinator.market_makers import CREDIT, MODEL, a_job, model_offer, node
from tests.protocol.makers import CLIENT, make_request

LOAD_MS = 12_000


def cold(load_ms: int = LOAD_MS, *, price_nano: int = CREDIT) -> ModelOffer:
    return replace(model_offer(price_nano=price_nano), load_ms=load_ms)


def market_of(*models: ModelOffer) -> market_makers.Market:
    market = market_makers.Market()
    for number, model in enumerate(models):
        market.add(number, model)
    return market


def test_the_first_output_of_a_cold_model_comes_after_its_load() -> None:
    market = market_of(cold(), model_offer())
    found = market.match(a_job(objective=Objective.PRICE)).candidates
    slow, quick = (next(c for c in found if c.node == node(n)).latency for n in (0, 1))
    assert slow.load_ms == LOAD_MS
    assert slow.first_output_ms == pytest.approx(quick.first_output_ms + LOAD_MS)
    assert slow.total_ms == pytest.approx(quick.total_ms + LOAD_MS)


@pytest.mark.parametrize("objective", [Objective.LATENCY, Objective.BALANCED, Objective.PRICE])
def test_a_loaded_model_of_like_price_wins(objective: Objective) -> None:
    market = market_of(cold(), model_offer())
    assert market.first(a_job(objective=objective)) == node(1)


def test_a_cold_model_that_is_cheaper_wins_by_price() -> None:
    market = market_of(cold(price_nano=CREDIT // 2), model_offer())
    assert market.first(a_job(objective=Objective.PRICE)) == node(0)


def test_a_deadline_that_the_load_cannot_meet_excludes_the_node() -> None:
    market = market_of(cold())
    late = a_job(deadline_at_ms=market.now_ms + LOAD_MS - 1)
    assert market.match(late).counts == {Reason.DEADLINE_TOO_SOON: 1}
    assert market.match(a_job(deadline_at_ms=market.now_ms + 10 * LOAD_MS)).candidates


def test_a_quote_says_how_long_the_load_takes() -> None:
    market = market_of(cold(), cold(2_000))
    constraints = Constraints(max_latency_ms=5_000)
    ask = QuoteAsk(MODEL, Task.CAUSAL_LM, Units(5, 5), Units(5, 5), constraints=constraints)
    job = Job.of_quote(ask)
    reply = quote_reply(market.match(job, explain=True), job, market.book, match_us=1)
    (candidate,), (rejection,) = reply.candidates, reply.rejections
    assert candidate.load_ms == 2_000
    assert "cold: it has to be loaded first, which takes 2.0 s" in candidate.reasons
    assert rejection.reasons == (
        "latency_above_max: cold: it has to be loaded first, which takes 12.0 s",
    )
    assert decode(QuoteReply, encode(reply)) == reply


def test_the_offer_of_a_loaded_model_has_the_bytes_of_before() -> None:
    offer = model_offer()
    assert b"load_ms" not in encode(offer)
    assert b"load_ms" in encode(cold())
    with pytest.raises(ValueError, match="load time"):
        cold(LOAD_MS_MAX + 1)


async def test_a_node_that_loads_is_not_taken_for_silent() -> None:
    """Twice the time that it offered, and no longer, on top of what every node gets."""
    within_ms = []
    for model in (model_offer(), cold()):
        clock = VirtualClock()
        made = market_makers.Market()
        made.now_ms = clock.now_ms()
        made.add(0, model)
        market = Market(
            made.book,
            made.reputation,
            clock=clock,
            rng=random.Random(1),
            stopwatch_ns=lambda: 0,
        )
        request = replace(make_request(CLIENT, b"x"), model=MODEL)
        choice = market.choose(request, exclude=frozenset(), deadline_at_ms=made.now_ms + 600_000)
        within_ms.append(choice.first_output_within_ms)
    assert within_ms[0] >= FIRST_OUTPUT_FLOOR_MS
    assert within_ms[1] == within_ms[0] + 2 * LOAD_MS
