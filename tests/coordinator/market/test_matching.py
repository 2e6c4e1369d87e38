"""Single decisions: objectives, constraints, estimates, order, load, and the reasons."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from coordinator.market.breaker import FAILURES_TO_OPEN, REFUSED_TO_COOL
from coordinator.market.matching import Job, Reason, Why
from coordinator.market.matching.claim import Claim
from coordinator.market.matching.quote import quote_reply, summary
from coordinator.market.standing_rows import Ratios
from protocol.codec import decode, encode
from protocol.errors import Code
from protocol.ids import LeaseId, PeerId, sha256_digest
from protocol.limits import ATTEMPTS_MAX
from protocol.messages import Constraints, DataCollection, IsolationTier, Objective, PriceCap, Task
from protocol.offers import ModelOffer
from protocol.pricing import PriceSheet, Units, cost_nano
from protocol.services import QuoteAsk, QuoteReply
from tests.coordinator.market_makers import (
    CREDIT,
    MODEL,
    NAME,
    SOURCE,
    Market,
    a_job,
    model_offer,
    node,
    node_offer,
    record,
)


def market_of(*models: ModelOffer) -> Market:
    """Node 0 offers the first model, node 1 the second, and so on; all of them are known well."""
    market = Market()
    for number, model in enumerate(models):
        market.add(number, model)
        for _ in range(20):
            market.reputation.record_success(node(number), SOURCE, now_ms=market.now_ms)
    return market


def ranking(market: Market, job: Job) -> list[PeerId]:
    return [candidate.node for candidate in market.match(job).candidates]


def counts(market: Market, job: Job) -> dict[Reason, int]:
    match = market.match(job)
    assert match.candidates == ()
    return match.counts


# Objectives.


def test_price_takes_the_cheapest_and_latency_the_fastest() -> None:
    market = market_of(
        model_offer(price_nano=CREDIT, decode_tps=20),
        model_offer(price_nano=10 * CREDIT, decode_tps=200, prefill_tps=10_000),
    )
    assert market.first(a_job(objective=Objective.PRICE)) == node(0)
    assert market.first(a_job(objective=Objective.LATENCY)) == node(1)
    assert market.first(a_job(objective=Objective.THROUGHPUT)) == node(1)


def test_balanced_trades_price_for_time_at_par() -> None:
    half_the_price = model_offer(price_nano=CREDIT // 2, decode_tps=40, prefill_tps=1_000)
    nearly_as_fast = model_offer(price_nano=CREDIT, decode_tps=50, prefill_tps=1_250)
    assert market_of(half_the_price, nearly_as_fast).first(a_job()) == node(0)
    four_times_as_fast = model_offer(price_nano=CREDIT, decode_tps=160, prefill_tps=4_000)
    assert market_of(half_the_price, four_times_as_fast).first(a_job()) == node(1)


def test_a_third_offer_does_not_change_the_choice_between_two() -> None:
    cheap = model_offer(price_nano=CREDIT // 3, decode_tps=30)
    fast = model_offer(price_nano=CREDIT, decode_tps=80)
    absurd = model_offer(price_nano=900 * CREDIT, decode_tps=1)
    alone = ranking(market_of(cheap, fast), a_job())
    assert ranking(market_of(cheap, fast, absurd), a_job())[:2] == alone


def test_a_free_node_does_not_win_at_any_speed() -> None:
    free = model_offer(price_nano=0, decode_tps=1, prefill_tps=5)
    usual = model_offer(price_nano=CREDIT // 100)
    market = market_of(free, usual)
    assert market.first(a_job()) == node(1)
    assert market.first(a_job(objective=Objective.PRICE)) == node(0)


def test_equal_prices_are_told_apart_by_time() -> None:
    market = market_of(model_offer(decode_tps=20), model_offer(decode_tps=90))
    assert market.first(a_job(objective=Objective.PRICE)) == node(1)


def test_cost_is_exact_and_the_ceiling_covers_the_maximum() -> None:
    market = market_of(model_offer(price_nano=1_234_567))
    candidate = market.match(a_job()).candidates[0]
    assert candidate.cost_nano == cost_nano(candidate.model.price, Units(500, 100))
    assert candidate.ceiling_nano == cost_nano(candidate.model.price, Units(500, 200))


# Estimates.


def test_the_latency_adds_up_and_includes_the_round_trip() -> None:
    market = Market()
    market.add(0, model_offer(prefill_tps=1_000, decode_tps=50), rtt_ms=40.0)
    latency = market.match(a_job()).candidates[0].latency
    assert latency.rtt_ms == 40.0
    assert latency.queue_ms == 0.0
    assert latency.prefill_ms == pytest.approx((500 + 20 + 5) * 1.25)
    assert latency.decode_ms == pytest.approx(99 * 20 * 1.25)
    assert latency.total_ms == pytest.approx(
        latency.rtt_ms + latency.prefill_ms + latency.decode_ms
    )


def test_a_full_node_is_expected_to_make_us_wait() -> None:
    market = market_of(model_offer(slots=2, queue_max=8))
    market.load(0, running=2, queued=3)
    latency = market.match(a_job()).candidates[0].latency
    own_ms = 500 + 2_000 + 5
    assert latency.queue_ms == pytest.approx(4 / 2 * own_ms * 1.25)


def test_what_was_measured_corrects_what_is_claimed() -> None:
    honest, boaster = model_offer(decode_tps=50), model_offer(decode_tps=500, prefill_tps=10_000)
    market = market_of(honest, boaster)
    job = a_job(objective=Objective.LATENCY)
    assert market.first(job) == node(1)
    for _ in range(4):
        ratios = Ratios(first=20.0, decode=20.0)
        market.reputation.record_success(node(1), SOURCE, now_ms=market.now_ms, ratios=ratios)
        market.reputation.record_success(
            node(0), SOURCE, now_ms=market.now_ms, ratios=Ratios(1.0, 1.0)
        )
    assert market.first(job) == node(0)


def test_a_claim_is_compared_without_the_network() -> None:
    claim = Claim(first_ms=100.0, step_ms=10.0)
    ratios = claim.ratios(first_output_ms=240.0, total_ms=1_240.0, output_tokens=51, rtt_ms=40.0)
    assert ratios == Ratios(first=2.0, decode=2.0)
    unknown = claim.ratios(first_output_ms=240.0, total_ms=250.0, output_tokens=2, rtt_ms=None)
    assert unknown == Ratios()
    assert claim.ratios(first_output_ms=None, total_ms=9.0, output_tokens=0, rtt_ms=1.0) == Ratios()
    too_early = claim.ratios(first_output_ms=1.0, total_ms=1.0, output_tokens=0, rtt_ms=40.0)
    assert too_early.first == pytest.approx(0.005)


def test_embeddings_and_images_have_no_decode() -> None:
    digest = sha256_digest(b"classifier")
    classifier = replace(
        model_offer(digest=digest, task=Task.IMAGE_CLASSIFICATION, prefill_tps=10, decode_tps=0),
        price=PriceSheet(image_nano=1_000),
        context_tokens=0,
    )
    market = market_of(classifier)
    job = a_job(
        model=digest,
        task=Task.IMAGE_CLASSIFICATION,
        expected=Units(images=1),
        maximum=Units(images=1),
        objective=Objective.THROUGHPUT,
    )
    candidate = market.match(job).candidates[0]
    assert candidate.latency.decode_ms == 0.0
    assert candidate.latency.prefill_ms == pytest.approx(105 * 1.25)
    assert candidate.cost_nano == 1_000


# Constraints.


@pytest.mark.parametrize(
    ("constraints", "reason"),
    [
        (Constraints(max_price=PriceCap(prompt_nano_per_mtok=CREDIT // 5)), Reason.PRICE_ABOVE_MAX),
        (Constraints(max_price=PriceCap(completion_nano_per_mtok=1)), Reason.PRICE_ABOVE_MAX),
        (Constraints(max_cost_nano=100), Reason.COST_ABOVE_MAX),
        (Constraints(quantizations=("int4", "int8")), Reason.QUANTIZATION),
        (Constraints(regions=("us", "asia")), Reason.REGION),
        (Constraints(isolation=IsolationTier.BWRAP), Reason.ISOLATION_TOO_WEAK),
        (Constraints(data_collection=DataCollection.DENY), Reason.DATA_COLLECTION),
        (Constraints(features=("tools", "logprobs")), Reason.FEATURES),
        (Constraints(features=("of a later version",)), Reason.FEATURES),
        (Constraints(ignore=(node(0),)), Reason.IGNORED),
        (Constraints(only=(node(5),)), Reason.NOT_IN_ONLY),
        (Constraints(order=(node(5),), allow_fallbacks=False), Reason.NOT_IN_ORDER),
    ],
)
def test_a_constraint_that_is_not_met_is_named(constraints: Constraints, reason: Reason) -> None:
    market = Market()
    offer = node_offer(0, isolation=IsolationTier.LANDLOCK, data_collection=DataCollection.ALLOW)
    market.insert(0, offer)
    assert market.match(a_job()).candidates
    assert counts(market, a_job(constraints=constraints)) == {reason: 1}


def test_features_are_compared_word_by_word() -> None:
    words = ("tools", "chat", "of a later version")
    able, unable = replace(model_offer(), features=words), model_offer(price_nano=CREDIT // 10)
    market = market_of(able, unable)
    for wanted in (("tools",), words, ("of a later version",)):
        found = market.match(a_job(constraints=Constraints(features=wanted)))
        assert [candidate.node for candidate in found.candidates] == [node(0)]
    unlike = market.match(a_job(constraints=Constraints(features=("another later one",))))
    assert unlike.candidates == ()


def test_a_node_beyond_max_latency_by_its_round_trip_alone_is_not_tried() -> None:
    market = Market()
    market.add(0, model_offer(), rtt_ms=40.0)
    job = a_job(constraints=Constraints(max_latency_ms=39))
    assert counts(market, job) == {Reason.LATENCY_ABOVE_MAX: 1}


def test_wishes_order_nodes_and_exclude_none() -> None:
    market = market_of(
        model_offer(decode_tps=20), model_offer(decode_tps=200, price_nano=CREDIT * 9)
    )
    cheap = a_job(objective=Objective.PRICE)
    assert market.first(cheap) == node(0)
    wished = replace(cheap, constraints=Constraints(preferred_tps=100))
    assert [c.node for c in market.match(wished).candidates] == [node(1), node(0)]
    soon = replace(cheap, constraints=Constraints(preferred_latency_ms=1))
    assert len(market.match(soon).candidates) == 2


def test_a_conversation_goes_back_to_its_node_until_that_is_busy() -> None:
    market = market_of(*(model_offer(slots=8) for _ in range(8)))
    for seed in range(8):
        market.rng.seed(seed)
        job = a_job(objective=Objective.PRICE, expected=Units(500, 100))
        again = replace(job, cache_at=node(5))
        assert market.first(again) == node(5)
        assert market.match(again).candidates[0].why is Why.KEEPS_CACHE
    market.load(5, running=2, queued=0)
    assert market.first(again) == node(5)
    market.load(5, running=3, queued=0)
    assert market.first(again) != node(5)


def test_a_cache_is_worth_no_higher_price_and_no_broken_constraint() -> None:
    market = market_of(model_offer(), model_offer(price_nano=2 * CREDIT))
    job = a_job(objective=Objective.PRICE)
    assert market.first(replace(job, cache_at=node(1))) == node(0)
    barred = replace(job, cache_at=node(0), constraints=Constraints(ignore=(node(0),)))
    assert market.first(barred) == node(1)
    assert market.first(replace(job, cache_at=node(77))) == node(0)


def test_limits_are_inclusive() -> None:
    market = market_of(model_offer(price_nano=CREDIT))
    ceiling_nano = market.match(a_job()).candidates[0].ceiling_nano
    cap = PriceCap(prompt_nano_per_mtok=CREDIT // 4, completion_nano_per_mtok=CREDIT)
    for constraints in (
        Constraints(max_price=cap),
        Constraints(max_cost_nano=ceiling_nano),
        Constraints(regions=("us", "eu"), quantizations=("bf16",), only=(node(0), node(7))),
    ):
        assert market.match(a_job(constraints=constraints)).candidates
    below = Constraints(max_cost_nano=ceiling_nano - 1)
    assert not market.match(a_job(constraints=below)).candidates


def test_what_the_node_cannot_do_is_named() -> None:
    market = market_of(model_offer(context_tokens=600))
    assert counts(market, a_job()) == {Reason.CONTEXT_TOO_SHORT: 1}
    assert counts(market, a_job(task=Task.EMBEDDING)) == {Reason.WRONG_TASK: 1}
    assert counts(market, a_job(model="nobody has it")) == {Reason.UNKNOWN_MODEL: 1}
    market.now_ms += 400_000
    assert Reason.EXPIRED in counts(market, a_job()), "even before anyone sweeps the book"


def test_a_cautious_bound_on_the_prompt_refuses_no_node() -> None:
    market = market_of(model_offer(context_tokens=1_000))
    assert market.match(a_job(maximum=Units(900_000, 200))).candidates


def test_what_the_node_cannot_do_now_is_named() -> None:
    market = market_of(*[model_offer(slots=1, queue_max=1)] * 5)
    market.load(0, 1, 1)
    market.load(1, 0, draining=True)
    market.book.detach(node(2), now_ms=market.now_ms)
    for _ in range(FAILURES_TO_OPEN):
        record(market.reputation, node(3), Code.WORKER_HUNG, now_ms=market.now_ms)
    for _ in range(REFUSED_TO_COOL):
        record(market.reputation, node(4), Code.BUSY, now_ms=market.now_ms, retry_after_ms=900)
    match = market.match(a_job())
    assert match.counts == dict.fromkeys(
        (
            Reason.BUSY,
            Reason.DRAINING,
            Reason.UNREACHABLE,
            Reason.BREAKER_OPEN,
            Reason.COOLING_DOWN,
        ),
        1,
    )
    assert match.alone == match.counts
    assert match.retry_after_ms == 900


def test_waiting_is_not_advised_where_it_does_not_help() -> None:
    market = market_of(model_offer(slots=1, queue_max=0))
    market.load(0, 1)
    constraints = Constraints(regions=("us",))
    match = market.match(a_job(constraints=constraints))
    assert match.counts == {Reason.BUSY: 1, Reason.REGION: 1}
    assert match.alone == {}
    assert match.retry_after_ms is None
    assert market.match(a_job()).retry_after_ms == pytest.approx(2_505 * 1.25, rel=0.01)


def test_a_job_whose_time_is_over_fits_nowhere() -> None:
    market = market_of(model_offer())
    job = a_job(deadline_at_ms=market.now_ms)
    assert counts(market, job) == {Reason.DEADLINE_PASSED: 1}


def test_a_quantization_under_one_name_can_be_chosen() -> None:
    small = sha256_digest(b"int4 build")
    market = market_of(
        model_offer(quantization="bf16"), model_offer(digest=small, quantization="int4")
    )
    by_name = a_job(model=NAME, constraints=Constraints(quantizations=("int4",)))
    candidates = market.match(by_name).candidates
    assert [c.model.manifest_digest for c in candidates] == [small]


# Time limits are soft until we are sure.


def test_an_unmeasured_node_is_tried_even_if_it_should_be_too_slow() -> None:
    market = market_of(model_offer(), model_offer(prefill_tps=50_000, price_nano=50 * CREDIT))
    job = a_job(objective=Objective.PRICE, constraints=Constraints(max_latency_ms=100))
    candidates = market.match(job).candidates
    assert [(c.node, c.is_over_limit) for c in candidates] == [(node(1), False), (node(0), True)]


def test_a_node_that_was_measured_to_be_too_slow_is_refused() -> None:
    market = market_of(model_offer())
    for _ in range(5):
        market.reputation.record_success(
            node(0), SOURCE, now_ms=market.now_ms, ratios=Ratios(2.0, 2.0)
        )
    late = Constraints(max_latency_ms=100)
    assert counts(market, a_job(constraints=late)) == {Reason.LATENCY_ABOVE_MAX: 1}
    soon = a_job(deadline_at_ms=market.now_ms + 500)
    assert counts(market, soon) == {Reason.DEADLINE_TOO_SOON: 1}
    market.now_ms += 100 * 60_000
    market.refresh()
    assert market.match(a_job(constraints=late)).candidates, "old measurements are no certainty"


# Order, fallbacks, attempts.


def test_the_clients_order_comes_first_and_balancing_is_off() -> None:
    market = market_of(*[model_offer(price_nano=CREDIT * (n + 1)) for n in range(5)])
    order = (node(4), node(77), node(2), node(4))
    job = a_job(constraints=Constraints(order=order))
    for _ in range(50):
        candidates = market.match(job).candidates
        assert [c.node for c in candidates[:2]] == [node(4), node(2)]
        assert {c.why for c in candidates[:2]} == {Why.ORDERED}
        assert len(candidates) == 5


def test_without_fallbacks_only_the_order_is_tried() -> None:
    market = market_of(*[model_offer()] * 5)
    constraints = Constraints(order=(node(4), node(2)), allow_fallbacks=False)
    assert ranking(market, a_job(constraints=constraints)) == [node(4), node(2)]
    second = a_job(constraints=constraints, exclude=frozenset({node(4)}))
    assert ranking(market, second) == [node(2)]
    narrower = replace(constraints, only=(node(2), node(3)))
    assert ranking(market, a_job(constraints=narrower)) == [node(2)]


def test_without_fallbacks_and_order_there_is_one_candidate_and_one_attempt() -> None:
    market = market_of(*[model_offer()] * 5)
    constraints = Constraints(allow_fallbacks=False)
    assert len(ranking(market, a_job(constraints=constraints))) == 1
    again = a_job(constraints=constraints, exclude=frozenset({node(1)}))
    assert counts(market, again) == {Reason.FALLBACK_NOT_ALLOWED: 1}


def test_attempts_are_bounded() -> None:
    market = market_of(*[model_offer()] * 9)
    tried: set[PeerId] = set()
    for _ in range(ATTEMPTS_MAX):
        tried.add(market.first(a_job(exclude=frozenset(tried))))
    assert len(tried) == ATTEMPTS_MAX
    assert counts(market, a_job(exclude=frozenset(tried))) == {Reason.ATTEMPTS_EXHAUSTED: 1}


# Load.


def test_of_two_near_equals_the_less_loaded_wins() -> None:
    market = market_of(*[model_offer(slots=8)] * 2)
    market.load(0, 3)
    for _ in range(30):
        assert ranking(market, a_job()) == [node(1), node(0)]


def test_near_equals_share_the_work() -> None:
    market = market_of(*[model_offer(slots=100)] * 20)
    for number in range(400):
        chosen = market.first(a_job())
        market.book.grant(
            LeaseId(str(number)),
            chosen,
            MODEL,
            expires_at_ms=market.now_ms + 60_000,
        )
    busy = [state.busy for entry in market.book for state in entry.models.values()]
    assert sum(busy) == 400
    assert max(busy) <= 24, "two choices keep the spread within a few jobs of the mean of 20"


def test_stale_loads_do_not_send_every_coordinator_to_one_node() -> None:
    market = market_of(*[model_offer(slots=8)] * 20)
    for number in range(20):
        market.load(number, 0 if number == 7 else 1)
    chosen = Counter(market.first(a_job()) for _ in range(600))
    assert len(chosen) == 20 - 1 or len(chosen) == 20
    assert max(chosen.values()) < 600 * 0.2, "node 7 wins its pairs, and is in a tenth of them"


def test_candidates_are_distinct_and_limited() -> None:
    market = market_of(*[model_offer(price_nano=CREDIT + n) for n in range(30)])
    for limit in (1, 2, 5, 40):
        nodes = [c.node for c in market.match(a_job(), limit=limit).candidates]
        assert len(nodes) == len(set(nodes)) == min(limit, 30)


def test_new_nodes_get_a_small_share_even_if_they_look_worse() -> None:
    market = market_of(*[model_offer(decode_tps=100, prefill_tps=4_000)] * 10)
    market.add(50, model_offer(decode_tps=10))
    chosen = Counter(market.first(a_job()) for _ in range(4_000))
    assert 0.01 < chosen[node(50)] / 4_000 < 0.03


def test_curiosity_never_costs_the_client_much() -> None:
    market = market_of(*[model_offer()] * 3)
    market.add(50, model_offer(price_nano=2 * CREDIT))
    assert all(market.first(a_job()) != node(50) for _ in range(1_000))


# Explaining.


def test_an_explanation_names_nodes_and_all_their_reasons() -> None:
    market = market_of(*[model_offer(price_nano=CREDIT * (n + 1)) for n in range(4)])
    market.load(3, 4, 4)
    cap = PriceCap(completion_nano_per_mtok=2 * CREDIT)
    constraints = Constraints(max_price=cap, only=(node(0), node(2), node(3), node(9)))
    job = a_job(constraints=constraints)
    match = market.match(job, explain=True)
    assert [c.node for c in match.candidates] == [node(0)]
    assert match.considered == 4
    assert match.counts == {Reason.NOT_IN_ONLY: 1, Reason.PRICE_ABOVE_MAX: 2, Reason.BUSY: 1}
    assert match.alone == {Reason.NOT_IN_ONLY: 1, Reason.PRICE_ABOVE_MAX: 1}
    reasons = {rejection.node: rejection.reasons for rejection in match.rejections}
    assert reasons == {
        node(1): (Reason.NOT_IN_ONLY,),
        node(2): (Reason.PRICE_ABOVE_MAX,),
        node(3): (Reason.PRICE_ABOVE_MAX, Reason.BUSY),
        node(9): (Reason.NOT_OFFERED,),
    }
    reply = quote_reply(match, job, market.book, match_us=5)
    assert decode(QuoteReply, encode(reply)) == reply
    texts = {rejection.node: rejection.reasons for rejection in reply.rejections}
    assert texts[node(3)] == (
        "price_above_max: asks 1 per M in, 4 per M out",
        "busy: 8 jobs for 4 slots and 4 places",
    )
    assert reply.candidates[0].reasons == ("best score",)


def test_a_quote_of_nothing_says_so() -> None:
    market = market_of(model_offer())
    ask = QuoteAsk("nobody has it", Task.CAUSAL_LM, Units(1, 1), Units(1, 1))
    job = Job.of_quote(ask)
    match = market.match(job, explain=True)
    assert summary(match) == "unknown_model (1)"
    reply = quote_reply(match, job, market.book, match_us=1)
    assert (reply.model_digest, reply.ceiling_nano, reply.candidates) == ("", 0, ())


def test_a_summary_starts_with_the_most_frequent_reason() -> None:
    market = market_of(*[model_offer()] * 3)
    market.load(0, 4, 4)
    match = market.match(a_job(constraints=Constraints(regions=("us",))))
    assert summary(match) == "region (3), busy (1)"


def test_the_choice_is_repeatable_from_the_seed() -> None:
    def choices(seed: int) -> list[list[PeerId]]:
        market = market_of(*[model_offer()] * 12)
        market.rng = random.Random(seed)
        return [ranking(market, a_job()) for _ in range(20)]

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)


def test_a_batch_takes_only_a_seat_that_is_idle_and_pays_less() -> None:
    market = market_of(model_offer())
    batch = a_job(is_batch=True)
    (candidate,) = market.match(batch).candidates
    assert candidate.price == PriceSheet(CREDIT // 8, CREDIT // 2)
    assert candidate.ceiling_nano == cost_nano(candidate.price, batch.maximum)
    market.load(0, 4, 0)
    assert market.match(batch).counts == {Reason.BUSY: 1}
    assert market.match(a_job()).candidates


def test_jobs_of_batches_keep_no_other_job_from_a_node() -> None:
    market = market_of(model_offer())
    for number in range(8):
        market.book.grant(
            LeaseId(f"{number:026}"),
            node(0),
            MODEL,
            expires_at_ms=market.now_ms + 60_000,
            is_batch=True,
        )
    assert market.match(a_job(is_batch=True)).counts == {Reason.BUSY: 1}
    (candidate,) = market.match(a_job()).candidates
    assert candidate.latency.queue_ms == 0


def test_caps_of_a_batch_are_held_against_its_own_price() -> None:
    market = market_of(model_offer())
    cap = Constraints(max_price=PriceCap(completion_nano_per_mtok=CREDIT // 2))
    assert market.match(a_job(is_batch=True, constraints=cap)).candidates
    assert market.match(a_job(constraints=cap)).counts == {Reason.PRICE_ABOVE_MAX: 1}
    most_nano = cost_nano(PriceSheet(CREDIT // 8, CREDIT // 2), a_job().maximum)
    cost = Constraints(max_cost_nano=most_nano)
    assert market.match(a_job(is_batch=True, constraints=cost)).candidates
    assert not market.match(a_job(constraints=cost)).candidates
