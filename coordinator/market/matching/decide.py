"""The decision itself: the one place that knows the order of the steps."""

import random
from collections.abc import Iterator
from itertools import islice

import numpy as np

from coordinator.market.matching.choose import Field, Placement, explore, rank
from coordinator.market.matching.estimate import (
    Estimates,
    Misses,
    deadline_misses,
    estimate,
    latency_misses,
    wish_misses,
)
from coordinator.market.matching.explain import explained, hopeless
from coordinator.market.matching.filters import (
    Selection,
    fits_exactly,
    fitting,
    position_of,
    select,
)
from coordinator.market.matching.job import Candidate, Job, Match, Reason, Why
from coordinator.market.matching.score import score
from coordinator.market.offers import OfferBook
from coordinator.market.offers.table import BUSY, MACHINE, SLOTS, ModelTable
from coordinator.market.reputation import Reputation
from coordinator.market.standings import Bools, Ints
from protocol.limits import ATTEMPTS_MAX
from protocol.messages import Objective
from protocol.pricing import cost_nano

# A node that has a cache may have so many jobs more than the least busy one.
CACHE_WORTH_JOBS = 2
# And be so much slower than what counts as equal otherwise.
CACHE_WORTH = 1.3


def match(
    job: Job,
    book: OfferBook,
    reputation: Reputation,
    *,
    now_ms: int,
    rng: random.Random,
    limit: int = ATTEMPTS_MAX,
    explain: bool = False,
) -> Match:
    """Rank at most `limit` nodes for a job, or say why there are none (`explain`: say it anyway).

    The same job, book, reputation, time and seed give the same answer in any process, whatever the
    order in which offers arrived.
    """
    table = book.table(job.model)
    reason = _hopelessness(job, table, now_ms)
    if table is None or reason is not None:
        return hopeless(reason or Reason.UNKNOWN_MODEL)
    selection = select(table, book.machines, reputation, job, now_ms=now_ms)
    fit, positions = fitting(table, selection)
    candidates: tuple[Candidate, ...] = ()
    if len(positions):
        wanted = limit if _may_fall_back(job) else 1
        found = _ranked(book, table, fit, positions, rng=rng, limit=wanted)
        candidates = tuple(islice(found, wanted))
    if candidates and not explain:
        return Match(candidates, considered=len(table))
    return explained(
        candidates, table, book.machines, reputation, job, now_ms=now_ms, name_nodes=explain
    )


def _hopelessness(job: Job, table: ModelTable | None, now_ms: int) -> Reason | None:
    """Why no node could take the job, whatever it offers."""
    if table is None:
        return Reason.UNKNOWN_MODEL
    if job.deadline_at_ms is not None and job.deadline_at_ms <= now_ms:
        return Reason.DEADLINE_PASSED
    if len(job.exclude) >= ATTEMPTS_MAX:
        return Reason.ATTEMPTS_EXHAUSTED
    if job.exclude and not _may_fall_back(job):
        return Reason.FALLBACK_NOT_ALLOWED
    return None


def _may_fall_back(job: Job) -> bool:
    """An `order` without fallbacks still allows its own items, one after the other."""
    return job.constraints.allow_fallbacks or bool(job.constraints.order)


def _ranked(
    book: OfferBook,
    table: ModelTable,
    fit: Selection,
    positions: Ints,
    *,
    rng: random.Random,
    limit: int,
) -> Iterator[Candidate]:
    """Candidates in order, built one by one as the caller takes them."""
    estimates = estimate(fit)
    success = fit.standings.success()
    scores = score(fit.job.objective, estimates, success)
    busy = fit.rows.value(BUSY) / fit.rows.value(SLOTS)
    load = np.maximum(busy, fit.standings.refusal_rate())
    field = Field(scores, load, fit.rows.ties, estimates.cost_nano, fit.standings.familiar())
    misses = _limits(fit, estimates)
    for place in _places(table, fit, positions, field, misses, rng=rng, limit=limit):
        entry = book.get(table.nodes[fit.rows.row_number(place.position)])
        model = entry.model(table.model) if entry is not None else None
        if entry is None or model is None or not fits_exactly(entry.offer, model, fit.job):
            continue
        price = model.asked_price(is_batch=fit.job.is_batch)
        yield Candidate(
            offer=entry.signed,
            model=model,
            price=price,
            cost_nano=cost_nano(price, fit.job.expected),
            ceiling_nano=cost_nano(price, fit.job.maximum),
            latency=estimates.latency(place.position),
            score=float(scores.primary[place.position]),
            success=float(success[place.position]),
            load=float(load[place.position]),
            why=place.why,
            is_over_limit=bool(misses.is_over[place.position]),
            claim=estimates.claim(place.position),
        )


def _limits(fit: Selection, estimates: Estimates) -> Misses:
    """Rows that should miss `max_latency`, the deadline or a wish, and those that miss one of the
    first two for certain."""
    is_over: Bools = np.zeros(fit.rows.size, np.bool_)
    is_certain: Bools = np.zeros(fit.rows.size, np.bool_)
    for misses in (latency_misses(fit, estimates), deadline_misses(fit, estimates)):
        if misses is not None:
            is_over |= misses.is_over
            is_certain |= misses.is_certain
    unwished = wish_misses(fit, estimates)
    if unwished is not None:
        is_over |= unwished
    return Misses(is_over, is_certain)


def _places(
    table: ModelTable,
    fit: Selection,
    positions: Ints,
    field: Field,
    misses: Misses,
    *,
    rng: random.Random,
    limit: int,
) -> list[Placement]:
    """The client's own order first; then those that should meet its limits, then those that may."""
    is_open: Bools = np.zeros(fit.rows.size, np.bool_)
    is_open[positions] = True
    is_open &= ~misses.is_certain
    found = (position_of(table, fit.rows, node) for node in fit.job.constraints.order)
    ordered = [p for p in dict.fromkeys(found) if p is not None and is_open[p]]
    places = [Placement(position, Why.ORDERED) for position in ordered]
    is_open[ordered] = False
    is_last = fit.is_last_resort()
    within: Ints = (is_open & ~misses.is_over).nonzero()[0]
    # Without a fallback, a client that gets the new node gets nothing else.
    trusted = within[~is_last[within]]
    kept = None if ordered else _keeper(table, fit, trusted, field)
    if kept is not None:
        places.append(Placement(kept, Why.KEEPS_CACHE))
        within = within[within != kept]
    curious = explore(field, trusted, rng=rng) if not places and limit > 1 else None
    if curious is not None:
        places.append(Placement(curious, Why.EXPLORED))
        within = within[within != curious]
    # What failed on one machine may well fail on its neighbour: other machines come first. Nodes
    # that go away often, and strangers from where others failed, come last of all.
    levels = 2 * is_last + _is_near_tried(table, fit)
    over: Ints = (is_open & misses.is_over).nonzero()[0]
    for level in range(4):
        for among in (within, over):
            left = limit - len(places)
            if left > 0 and len(among):
                places += rank(field, among[levels[among] == level], rng=rng, limit=left)
    return places


def _keeper(table: ModelTable, fit: Selection, among: Ints, field: Field) -> int | None:
    """The node that ran how the input begins, if it is near-equal to the best and hardly busier
    than the least busy: what its cache saves is a prefill, and a queue costs more."""
    node = fit.job.cache_at
    position = None if node is None else position_of(table, fit.rows, node)
    if position is None or position not in among:
        return None
    busy, slots = fit.busy(), fit.rows.value(SLOTS)
    if busy[position] > busy[among].min() + CACHE_WORTH_JOBS or busy[position] >= slots[position]:
        return None
    primary, near = field.scores.primary, field.scores.near
    # Prices are exact; a time that was corrected by one measurement may move by more than the rest.
    near = near if fit.job.objective is Objective.PRICE else near * CACHE_WORTH
    return position if primary[position] <= primary[among].min() * near else None


def _is_near_tried(table: ModelTable, fit: Selection) -> Bools:
    """Rows on the machines of nodes that this job has already been to."""
    machines = fit.rows.code(MACHINE)
    tried = [table.row_of[node] for node in fit.job.exclude if node in table.row_of]
    if not tried:
        return np.zeros(fit.rows.size, np.bool_)
    near: Bools = np.isin(machines, table.rows().code(MACHINE)[tried])
    return near
