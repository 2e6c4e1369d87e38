"""Why a node did not get the last jobs: what its owner is told."""

import random

from coordinator.market.matching import Job
from coordinator.market.passed_over import model_standing
from coordinator.market.recent_jobs import JOBS_PER_MODEL, MODELS_MAX, RecentJobs
from protocol.errors import Code
from protocol.messages import Constraints, Objective, PriceCap
from protocol.standing import ModelStanding
from tests.coordinator.market_makers import (
    CREDIT,
    MODEL,
    NAME,
    Market,
    a_job,
    model_offer,
    node,
    record,
)


def run(market: Market, recent: RecentJobs, job: Job, *, times: int = 4) -> None:
    for _ in range(times):
        found = market.match(job, limit=2).candidates
        recent.note(job, found[0] if found else None)


def standing(market: Market, recent: RecentJobs, number: int) -> ModelStanding:
    table = market.book.table(MODEL)
    assert table is not None
    return model_standing(
        table,
        recent.of(NAME, MODEL),
        node(number),
        book=market.book,
        reputation=market.reputation,
        now_ms=market.now_ms,
    )


def two_nodes(*, second_price: int = CREDIT, second_tps: int = 50) -> tuple[Market, RecentJobs]:
    market = Market()
    market.add(1)
    market.add(2, model_offer(price_nano=second_price, decode_tps=second_tps))
    return market, RecentJobs()


def test_a_dearer_node_learns_by_how_much() -> None:
    market, recent = two_nodes(second_price=CREDIT * 12 // 10)
    run(market, recent, a_job(objective=Objective.PRICE))
    found = standing(market, recent, 2)
    assert (found.jobs, found.chosen, found.outbid) == (4, 0, 4)
    assert found.dearer_percent == 20
    assert found.slower_percent == 0
    assert standing(market, recent, 1).chosen == 4


def test_a_slower_node_learns_by_how_much() -> None:
    market, recent = two_nodes(second_tps=25)
    run(market, recent, a_job(objective=Objective.LATENCY))
    found = standing(market, recent, 2)
    assert found.chosen == 0
    assert 50 < found.slower_percent < 110
    assert found.dearer_percent == 0


def test_a_price_above_every_cap_is_a_reason() -> None:
    market, recent = two_nodes(second_price=3 * CREDIT)
    cap = Constraints(max_price=PriceCap(completion_nano_per_mtok=2 * CREDIT))
    run(market, recent, a_job(constraints=cap))
    (reason,) = standing(market, recent, 2).reasons
    assert (reason.reason, reason.count) == ("price_above_max", 4)


def test_a_breaker_a_name_and_a_flag_are_reasons() -> None:
    market, recent = two_nodes()
    run(market, recent, a_job(constraints=Constraints(only=(node(1),))))
    assert [each.reason for each in standing(market, recent, 2).reasons] == ["not_in_only"]
    market, recent = two_nodes()
    for _ in range(8):
        record(market.reputation, node(2), Code.WORKER_CRASHED, now_ms=market.now_ms)
    market.book.set_dialable(node(1), is_dialable=False)
    run(market, recent, a_job())
    assert "breaker_open" in [each.reason for each in standing(market, recent, 2).reasons]


def test_jobs_that_no_node_could_take_count_too() -> None:
    market, recent = two_nodes()
    for region in ("mars", "moon", "mars", "moon"):
        job = a_job(constraints=Constraints(regions=(region,)))
        run(market, recent, job, times=3)  # It waits, and is matched three times.
    found = standing(market, recent, 1)
    assert (found.jobs, found.chosen, found.outbid) == (4, 0, 0)
    assert [each.reason for each in found.reasons] == ["region"]


def test_what_is_remembered_is_bounded() -> None:
    market, recent = two_nodes()
    run(market, recent, a_job(), times=JOBS_PER_MODEL + 5)
    assert len(recent.of(MODEL)) == JOBS_PER_MODEL
    for number in range(MODELS_MAX):
        recent.note(a_job(model=f"model {number}"), None)
    assert recent.of(MODEL) == []
    assert len(recent.of("model 1", "model 1")) == 1


def test_judging_again_leaves_the_decisions_as_they_are() -> None:
    market, recent = two_nodes()
    run(market, recent, a_job())
    state = market.rng.getstate()
    standing(market, recent, 2)
    assert market.rng.getstate() == state
    assert isinstance(market.rng, random.Random)
