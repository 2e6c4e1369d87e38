"""What must hold for every market and job, against an oracle that looks at one node at a time."""

import random
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.market.breaker import FAILURES_TO_OPEN
from coordinator.market.matching import Job, Match, Reason
from coordinator.market.offers.entry import NodeEntry
from coordinator.market.standing_rows import Ratios
from protocol.errors import Code
from protocol.ids import PeerId, sha256_digest
from protocol.limits import ATTEMPTS_MAX
from protocol.messages import Constraints, DataCollection, IsolationTier, Objective, PriceCap, Task
from protocol.offers import ModelOffer, NodeOffer
from protocol.pricing import cost_nano
from tests.coordinator.market_makers import (
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

OTHER_MODEL = sha256_digest(b"another build")
NODES = 7
numbers = st.integers(0, NODES - 1)
regions = st.sampled_from(["eu", "us"])
quantizations = st.sampled_from(["bf16", "int4"])
prices = st.integers(0, 5)
node_tuples = st.lists(numbers, max_size=4).map(lambda found: tuple(node(n) for n in found))


@dataclass(frozen=True)
class Scripted:
    """One node of a generated market."""

    number: int
    offer: NodeOffer
    running: int | None
    is_draining: bool
    is_lost: bool
    history: tuple[Code | None, ...]


@st.composite
def offers(draw: st.DrawFn, number: int) -> NodeOffer:
    model = model_offer(
        name=NAME,
        digest=draw(st.sampled_from([MODEL, MODEL, OTHER_MODEL])),
        task=draw(st.sampled_from([Task.CAUSAL_LM, Task.CAUSAL_LM, Task.EMBEDDING])),
        price_nano=4 * draw(prices),
        prefill_tps=draw(st.sampled_from([0, 10, 1_000])),
        decode_tps=draw(st.sampled_from([0, 5, 50])),
        slots=draw(st.integers(1, 3)),
        queue_max=draw(st.integers(0, 2)),
        quantization=draw(quantizations),
        context_tokens=draw(st.sampled_from([600, 8_192])),
    )
    return node_offer(
        number,
        model,
        region=draw(regions),
        isolation=draw(st.sampled_from(list(IsolationTier))),
        data_collection=draw(st.sampled_from(list(DataCollection))),
    )


@st.composite
def scripts(draw: st.DrawFn) -> list[Scripted]:
    present = draw(st.sets(numbers))
    codes = st.sampled_from([None, None, Code.BUSY, Code.NODE_LOST])
    return [
        Scripted(
            number,
            draw(offers(number)),
            draw(st.none() | st.integers(0, 5)),
            draw(st.integers(0, 5)) == 0,
            draw(st.integers(0, 5)) == 0,
            tuple(draw(st.lists(codes, max_size=FAILURES_TO_OPEN + 1))),
        )
        for number in sorted(present)
    ]


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    caps = st.none() | st.integers(0, 20)
    constraints = Constraints(
        max_price=PriceCap(draw(caps), draw(caps), draw(caps), draw(caps)),
        max_cost_nano=draw(st.none() | st.integers(0, 3)),
        max_latency_ms=draw(st.none() | st.sampled_from([1, 700, 60_000])),
        order=draw(node_tuples),
        only=draw(st.just(()) | node_tuples),
        ignore=draw(st.just(()) | node_tuples),
        allow_fallbacks=draw(st.booleans()),
        quantizations=tuple(draw(st.lists(quantizations, max_size=2))),
        regions=tuple(draw(st.lists(regions, max_size=2))),
        isolation=draw(st.sampled_from(list(IsolationTier))),
        data_collection=draw(st.sampled_from(list(DataCollection))),
    )
    return a_job(
        model=draw(st.sampled_from([MODEL, NAME])),
        objective=draw(st.sampled_from(list(Objective))),
        constraints=draw(st.sampled_from([constraints, Constraints()])),
        exclude=frozenset(draw(st.just(()) | node_tuples)),
    )


def build(market_script: list[Scripted], *, seed: int = 5) -> Market:
    """The market of a script, its nodes listed in the order given."""
    market = Market(seed=seed)
    for scripted in market_script:
        market.insert(scripted.number, scripted.offer)
        market.book.set_rtt(node(scripted.number), 5.0 + scripted.number)
        if scripted.running is not None:
            market.load(scripted.number, scripted.running, draining=scripted.is_draining)
        if scripted.is_lost:
            market.book.detach(node(scripted.number), now_ms=market.now_ms)
    # The jitter of one shared generator depends on who failed first; that order is history's.
    for scripted in sorted(market_script, key=lambda s: s.number):
        for code in scripted.history:
            if code is None:
                ratios = Ratios(2.0, 3.0)
                market.reputation.record_success(
                    node(scripted.number), SOURCE, now_ms=market.now_ms, ratios=ratios
                )
            else:
                record(market.reputation, node(scripted.number), code, now_ms=market.now_ms)
    return market


def ruled_out_by_client(node_id: PeerId, offer: NodeOffer, model: ModelOffer, job: Job) -> bool:
    """The oracle's own reading of the constraints, except for latency."""
    constraints = job.constraints
    cap, price = constraints.max_price, model.price
    pairs = (
        (cap.prompt_nano_per_mtok, price.input_nano_per_mtok),
        (cap.completion_nano_per_mtok, price.output_nano_per_mtok),
        (cap.image_nano, price.image_nano),
        (cap.request_nano, price.request_nano),
        (constraints.max_cost_nano, cost_nano(price, job.maximum)),
    )
    denies = constraints.data_collection is DataCollection.DENY
    return (
        any(limit is not None and value > limit for limit, value in pairs)
        or bool(constraints.only and node_id not in constraints.only)
        or node_id in constraints.ignore
        or node_id in job.exclude
        or bool(
            constraints.order
            and not constraints.allow_fallbacks
            and node_id not in constraints.order
        )
        or bool(constraints.quantizations and model.quantization not in constraints.quantizations)
        or bool(constraints.regions and offer.region not in constraints.regions)
        or offer.isolation.rank < constraints.isolation.rank
        or (denies and offer.data_collection is DataCollection.ALLOW)
    )


def cannot_now(market: Market, entry: NodeEntry, model: ModelOffer, job: Job) -> bool:
    state = entry.models[model.manifest_digest]
    standing = market.reputation.standing(entry.node, now_ms=market.now_ms)
    needed = job.expected.input_tokens + job.maximum.output_tokens
    return (
        model.task is not job.task
        or model.context_tokens < needed
        or entry.is_draining
        or entry.lost_at_ms is not None
        or state.busy >= model.slots + model.queue_max
        or (standing is not None and standing.blocked_until_ms > market.now_ms)
    )


def fitting_nodes(market: Market, job: Job) -> set[PeerId]:
    fitting = set()
    for entry in market.book:
        model = entry.model(job.model)
        if (
            model is not None
            and not ruled_out_by_client(entry.node, entry.offer, model, job)
            and not cannot_now(market, entry, model, job)
        ):
            fitting.add(entry.node)
    if len(job.exclude) >= ATTEMPTS_MAX:
        return set()
    constraints = job.constraints
    if job.exclude and not constraints.allow_fallbacks and not constraints.order:
        return set()
    return fitting


def measured_too_slow(match: Match, node_id: PeerId) -> bool:
    reasons = {rejection.node: rejection.reasons for rejection in match.rejections}
    return reasons.get(node_id) == (Reason.LATENCY_ABOVE_MAX,)


@settings(max_examples=300, deadline=None)
@given(scripts(), jobs())
def test_candidates_are_exactly_the_nodes_that_fit(script: list[Scripted], job: Job) -> None:
    market = build(script)
    match = market.match(job, limit=NODES, explain=True)
    chosen = [candidate.node for candidate in match.candidates]
    expected = fitting_nodes(market, job)
    assert len(chosen) == len(set(chosen))
    assert set(chosen) <= expected
    assert not set(chosen) & job.exclude
    if job.constraints.allow_fallbacks or job.constraints.order:
        missing = expected - set(chosen)
        assert all(measured_too_slow(match, node_id) for node_id in missing)
    elif not any(measured_too_slow(match, node_id) for node_id in expected):
        assert len(chosen) == min(len(expected), 1)


@settings(max_examples=150, deadline=None)
@given(scripts(), jobs())
def test_the_order_comes_first_and_those_over_a_limit_last(
    script: list[Scripted], job: Job
) -> None:
    candidates = build(script).match(job, limit=NODES).candidates
    nodes = [candidate.node for candidate in candidates]
    wanted = [n for n in dict.fromkeys(job.constraints.order) if n in nodes]
    assert nodes[: len(wanted)] == wanted
    is_over = [candidate.is_over_limit for candidate in candidates[len(wanted) :]]
    assert is_over == sorted(is_over)


@settings(max_examples=200, deadline=None)
@given(scripts(), jobs(), st.randoms(use_true_random=False), st.integers(1, NODES))
def test_the_order_of_arrival_does_not_matter(
    script: list[Scripted], job: Job, shuffler: random.Random, limit: int
) -> None:
    shuffled = shuffler.sample(script, len(script))
    first, second = build(script), build(shuffled)
    for _ in range(3):
        assert first.match(job, limit=limit, explain=True) == second.match(
            job, limit=limit, explain=True
        )


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.sampled_from([5, 50])), max_size=NODES),
    st.sampled_from(list(Objective)),
    st.randoms(use_true_random=False),
)
def test_nor_does_it_among_equals(
    models: list[tuple[int, int]], objective: Objective, shuffler: random.Random
) -> None:
    """Ties are where the order of rows could show: here nearly everything is one."""
    script = [
        Scripted(
            number,
            node_offer(number, model_offer(price_nano=10**9 * price, decode_tps=tps)),
            running=0,
            is_draining=False,
            is_lost=False,
            history=(),
        )
        for number, (price, tps) in enumerate(models)
    ]
    first, second = build(script), build(shuffler.sample(script, len(script)))
    for _ in range(3):
        job = a_job(objective=objective)
        assert first.match(job, limit=NODES) == second.match(job, limit=NODES)


@settings(max_examples=100, deadline=None)
@given(scripts(), jobs(), st.integers(0, 2**32))
def test_the_same_seed_makes_the_same_choice(script: list[Scripted], job: Job, seed: int) -> None:
    assert build(script, seed=seed).match(job) == build(script, seed=seed).match(job)


@settings(max_examples=200, deadline=None)
@given(scripts(), jobs())
def test_an_explanation_agrees_with_the_decision(script: list[Scripted], job: Job) -> None:
    market = build(script)
    match = market.match(job, limit=NODES, explain=True)
    assert (match.retry_after_ms is None) or not match.candidates
    if match.considered == 0:
        assert not match.candidates
        assert len(match.counts) == 1
        return
    rejected = {r.node for r in match.rejections if r.reasons != (Reason.NOT_OFFERED,)}
    chosen = {candidate.node for candidate in match.candidates}
    assert not rejected & chosen
    if job.constraints.allow_fallbacks or job.constraints.order:
        assert len(rejected) + len(chosen) == match.considered
    for rejection in match.rejections:
        for reason in rejection.reasons:
            assert reason is Reason.NOT_OFFERED or match.counts[reason] > 0
    assert all(match.alone[reason] <= match.counts[reason] for reason in match.alone)
    unexplained = market.match(job, limit=NODES)
    assert bool(unexplained.candidates) == bool(match.candidates)
    if not match.candidates:
        assert replace(match, rejections=()) == unexplained


@settings(max_examples=100, deadline=None)
@given(scripts(), st.sampled_from(list(Objective)))
def test_a_lower_price_never_makes_a_score_worse(
    script: list[Scripted], objective: Objective
) -> None:
    market = build(script)
    job = a_job(objective=objective)
    for before in market.match(job, limit=NODES).candidates:
        price = replace(before.model.price, output_nano_per_mtok=0)
        offer = replace(
            before.offer.message, models=(replace(before.model, price=price),), sequence=2
        )
        cheaper = build(script)
        cheaper.insert(next(s.number for s in script if node(s.number) == before.node), offer)
        scores = {c.node: c.score for c in cheaper.match(job, limit=NODES).candidates}
        assert scores[before.node] <= before.score
