"""Why nothing fits, or what keeps each node from fitting: for refusals, quotes and operators.

Runs only when a decision failed or a client asks, so it may look at every row; naming nodes one by
one is left to those who ask, as a failing job must not cost more than one that succeeds.
"""

import heapq
from collections.abc import Mapping

import numpy as np

from coordinator.market.machines import Machines
from coordinator.market.matching.estimate import (
    Estimates,
    deadline_misses,
    estimate,
    latency_misses,
)
from coordinator.market.matching.filters import FILTERS, FLAG_FILTERS, Selection, selection_of
from coordinator.market.matching.job import PASSING, Candidate, Job, Match, Reason, Rejection
from coordinator.market.offers.table import ROOM, SLOTS, ModelTable
from coordinator.market.reputation import Reputation
from coordinator.market.standings import COOLING_UNTIL, OPEN_UNTIL, Bools, Ints
from protocol.ids import PeerId

# One page of a terminal; the counts cover all nodes.
REJECTIONS_MAX = 64

# Sooner than this nothing changes but the load of retries; later than this is not "soon".
_RETRY_MIN_MS = 100
_RETRY_MAX_MS = 60_000

Masks = Mapping[Reason, Bools]


def hopeless(reason: Reason) -> Match:
    """Nothing fits because of the job itself, whatever nodes there are."""
    return Match((), counts={reason: 1}, alone={reason: 1})


def explained(
    candidates: tuple[Candidate, ...],
    table: ModelTable,
    machines: Machines,
    reputation: Reputation,
    job: Job,
    *,
    now_ms: int,
    name_nodes: bool,
) -> Match:
    """The match with what is known of every node that did not fit."""
    selection = selection_of(table, table.rows(), machines, reputation, job, now_ms=now_ms)
    estimates = estimate(selection)
    masks = _masks(table, selection, estimates)
    total = _summed(list(masks.values()))
    is_alone = total == 1
    return Match(
        candidates,
        considered=len(table),
        counts=_counted(masks),
        alone=_counted({reason: mask & is_alone for reason, mask in masks.items()}),
        rejections=_named(table, masks, total > 0, job) if name_nodes else (),
        retry_after_ms=None if candidates else _retry_after(selection, estimates, masks, total),
    )


def _masks(table: ModelTable, selection: Selection, estimates: Estimates) -> Masks:
    """Which rows each reason rejects."""
    masks: dict[Reason, Bools] = {}
    constraints = selection.job.constraints
    if constraints.only:
        masks[Reason.NOT_IN_ONLY] = ~_listed(table, constraints.only)
    if constraints.order and not constraints.allow_fallbacks:
        masks[Reason.NOT_IN_ORDER] = ~_listed(table, constraints.order)
    masks[Reason.IGNORED] = _listed(table, constraints.ignore)
    masks[Reason.ALREADY_TRIED] = _listed(table, selection.job.exclude)
    for reason, rejects in (*FILTERS, *FLAG_FILTERS):
        found = rejects(selection)
        if found is not None:
            masks[reason] = found
    for reason, misses in (
        (Reason.LATENCY_ABOVE_MAX, latency_misses(selection, estimates)),
        (Reason.DEADLINE_TOO_SOON, deadline_misses(selection, estimates)),
    ):
        if misses is not None:
            masks[reason] = misses.is_certain
    return masks


def _listed(table: ModelTable, nodes: tuple[PeerId, ...] | frozenset[PeerId]) -> Bools:
    listed: Bools = np.zeros(len(table), np.bool_)
    listed[[table.row_of[node] for node in nodes if node in table.row_of]] = True
    return listed


def _counted(masks: Masks) -> dict[Reason, int]:
    counts = {reason: int(np.count_nonzero(mask)) for reason, mask in masks.items()}
    return {reason: count for reason, count in counts.items() if count}


def _summed(masks: list[Bools]) -> Ints:
    """How many of the masks hold, per row."""
    summed: Ints = np.array(masks).sum(axis=0, dtype=np.int64)
    return summed


def _named(table: ModelTable, masks: Masks, is_rejected: Bools, job: Job) -> tuple[Rejection, ...]:
    rows = np.flatnonzero(is_rejected).tolist()
    found = heapq.nsmallest(REJECTIONS_MAX, ((table.nodes[row], row) for row in rows))
    rejections = [
        Rejection(node, tuple(reason for reason, mask in masks.items() if mask[row]))
        for node, row in found
    ]
    asked_for = dict.fromkeys((*job.constraints.only, *job.constraints.order))
    rejections += [
        Rejection(node, (Reason.NOT_OFFERED,)) for node in asked_for if node not in table.row_of
    ]
    return tuple(rejections[:REJECTIONS_MAX])


def _retry_after(
    selection: Selection, estimates: Estimates, masks: Masks, total: Ints
) -> int | None:
    """When the first of the nodes that are only busy or resting should take the job: honest, as a
    client that is told to come back in a second will."""
    passing = _summed([mask for reason, mask in masks.items() if reason in PASSING])
    waits_only = np.flatnonzero((total > 0) & (passing == total))
    if not len(waits_only):
        return None
    rows, standings = selection.rows, selection.standings.rows
    rested_ms = np.maximum(standings[:, OPEN_UNTIL], standings[:, COOLING_UNTIL]) - selection.now_ms
    job_ms = estimates.prefill_ms + estimates.decode_ms
    slot_ms = job_ms / rows.value(SLOTS)
    is_full = selection.busy() >= rows.value(ROOM)
    wait_ms = np.maximum(rested_ms, np.where(is_full, slot_ms, 0.0))[waits_only]
    return int(min(max(wait_ms.min(), _RETRY_MIN_MS), _RETRY_MAX_MS))
