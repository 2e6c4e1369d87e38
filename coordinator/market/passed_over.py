"""Why one node did not get the last jobs for its models: for the node's owner."""

from collections import Counter
from collections.abc import Iterable
from statistics import median

import numpy as np

from coordinator.market.matching.estimate import estimate, latency_misses
from coordinator.market.matching.filters import (
    FILTERS,
    FLAG_FILTERS,
    Selection,
    named_nodes,
    selection_of,
)
from coordinator.market.matching.job import Job, Reason
from coordinator.market.offers import OfferBook
from coordinator.market.offers.table import ModelTable
from coordinator.market.recent_jobs import RecentJob
from coordinator.market.reputation import Reputation
from protocol.ids import Digest, PeerId
from protocol.standing import PERCENT_MAX, ModelStanding, ReasonCount


def model_standing(
    table: ModelTable,
    recent: Iterable[RecentJob],
    node: PeerId,
    *,
    book: OfferBook,
    reputation: Reputation,
    now_ms: int,
) -> ModelStanding:
    """The jobs judged again for this node, as things are now."""
    rows = table.rows_of((node,))
    jobs = chosen = 0
    reasons: Counter[Reason] = Counter()
    dearer: list[float] = []
    slower: list[float] = []
    for each in recent:
        jobs += 1
        chosen += each.winner == node
        if each.winner == node:
            continue
        selection = selection_of(table, rows, book.machines, reputation, each.job, now_ms=now_ms)
        found = _reasons(selection, each.job, node)
        reasons.update(found)
        if not found and each.winner is not None:
            estimates = estimate(selection)
            _compare(float(estimates.cost_nano[0]), each.cost_nano, dearer)
            _compare(estimates.latency(0).total_ms, each.total_ms, slower)
    return ModelStanding(
        Digest(table.model),
        jobs=jobs,
        chosen=chosen,
        reasons=tuple(ReasonCount(reason.value, count) for reason, count in reasons.most_common()),
        outbid=max(len(dearer), len(slower)),
        dearer_percent=round(median(dearer)) if dearer else 0,
        slower_percent=round(median(slower)) if slower else 0,
    )


def _reasons(selection: Selection, job: Job, node: PeerId) -> list[Reason]:
    found = []
    named = named_nodes(job)
    if named is not None and node not in named:
        found.append(Reason.NOT_IN_ONLY)
    if node in job.constraints.ignore:
        found.append(Reason.IGNORED)
    for reason, rejects in (*FILTERS, *FLAG_FILTERS):
        rejected = rejects(selection)
        if rejected is not None and bool(np.any(rejected)):
            found.append(reason)
    misses = latency_misses(selection, estimate(selection))
    if misses is not None and bool(np.any(misses.is_certain)):
        found.append(Reason.LATENCY_ABOVE_MAX)
    return found


def _compare(own: float, winners: float, found: list[float]) -> None:
    """By how many percent this node is above the one that was chosen."""
    if winners > 0 and own > winners:
        found.append(min(100 * (own / winners - 1), PERCENT_MAX))
