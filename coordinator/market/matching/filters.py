"""What keeps a node from taking a job: one small function per reason, each on whole columns.

A filter returns the rows that it rejects, or None if the job does not ask for anything there. The
same filters decide and explain, so an explanation cannot disagree with the decision.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coordinator.market.machines import Machines
from coordinator.market.matching.job import Job, Reason
from coordinator.market.offers.entry import TASK_CODES
from coordinator.market.offers.table import (
    BATCH_SHARE,
    BUSY,
    COLLECTS,
    CONTEXT,
    DRAINING,
    EXPIRES_MS,
    FEATURES,
    FLAGS,
    LIVE,
    MACHINE,
    NOT_DIALABLE,
    PRICES,
    QUANTIZATION,
    REGION,
    ROOM,
    RTT_MS,
    SLOTS,
    STANDING,
    SUSPENDED,
    TASK,
    TIER,
    UNAVAILABLE,
    UNREACHABLE,
    ModelTable,
    Rows,
    code_of,
    features_mask,
)
from coordinator.market.reputation import Reputation
from coordinator.market.standings import Bools, Floats, Ints, Standings
from protocol.constraints import broken_constraint
from protocol.ids import PeerId
from protocol.messages import DataCollection
from protocol.offers import ModelOffer, NodeOffer
from protocol.pricing import Units, cost_nano
from protocol.tasks import TASKS


@dataclass(frozen=True, slots=True)
class Selection:
    """Some rows of one table with the standing of their nodes and machines, for one job at one
    time. `is_resting` marks nodes that refused this client lately, `client_rtt_ms` are round trips
    with what the client measured itself; None if there are none."""

    rows: Rows
    standings: Standings
    machines: Machines
    job: Job
    now_ms: int
    is_resting: Bools | None = None
    client_rtt_ms: Floats | None = None

    def rtt_ms(self) -> Floats:
        """From the client where it told us, from here where it did not."""
        return self.rows.value(RTT_MS) if self.client_rtt_ms is None else self.client_rtt_ms

    def busy(self) -> Floats:
        """Jobs that this one would have to wait for, where all slots are taken."""
        return self.rows.value(BUSY if self.job.needs_idle_seat else LIVE)

    def is_last_resort(self) -> Bools:
        """Nodes that go away without notice, and those of machines that do or that failed several
        times, unless they have a record of their own (and stayed)."""
        standings, slots = self.standings, self.rows.code(MACHINE)
        is_unproven = ~standings.is_proven()
        suspects = is_unproven | standings.was_lost(self.now_ms)
        suspects &= self.machines.is_unsteady(slots, self.now_ms)
        suspects |= is_unproven & self.machines.is_open(slots, self.now_ms)
        return suspects | standings.is_unsteady(self.now_ms)

    def narrowed(self, kept: Ints) -> "Selection":
        """Only the rows at these positions."""
        return Selection(
            self.rows.select(kept),
            self.standings.select(kept),
            self.machines,
            self.job,
            self.now_ms,
            None if self.is_resting is None else self.is_resting[kept],
            None if self.client_rtt_ms is None else self.client_rtt_ms[kept],
        )


Filter = Callable[[Selection], Bools | None]


def costs(rows: Rows, units: Units, *, is_batch: bool) -> Floats:
    """Each node's charge for `units`, unrounded; skips the positions that the job does not use."""
    cost: Floats | None = None
    for column, position in PRICES:
        count = position.count(units)
        if count:
            part = rows.value(column) * (count / position.per)
            cost = part if cost is None else cost + part
    assert cost is not None, "one price is for the job itself"
    return cost * rows.value(BATCH_SHARE) if is_batch else cost


def _has_wrong_task(selection: Selection) -> Bools:
    rejected: Bools = selection.rows.code(TASK) != TASK_CODES[selection.job.task]
    return rejected


def _has_too_short_context(selection: Selection) -> Bools | None:
    """The whole answer must fit behind the prompt as we guess it. The most that may be billed for
    the prompt is no measure: it allows a token for every byte."""
    if not TASKS[selection.job.task].is_stream:
        return None
    needed = selection.job.expected.input_tokens + selection.job.maximum.output_tokens
    return selection.rows.value(CONTEXT) < needed


def _asks_more_than_max_price(selection: Selection) -> Bools | None:
    cap = selection.job.constraints.max_price
    share: Floats | float = selection.rows.value(BATCH_SHARE) if selection.job.is_batch else 1.0
    rejected: Bools | None = None
    for column, position in PRICES:
        limit_nano = getattr(cap, position.cap_field)
        if limit_nano is not None:
            above = selection.rows.value(column) * share > limit_nano
            rejected = above if rejected is None else rejected | above
    return rejected


def _may_cost_more_than_max(selection: Selection) -> Bools | None:
    limit_nano = selection.job.constraints.max_cost_nano
    if limit_nano is None:
        return None
    job = selection.job
    return np.ceil(costs(selection.rows, job.maximum, is_batch=job.is_batch)) > limit_nano


def _has_other_quantization(selection: Selection) -> Bools | None:
    return _is_none_of(selection, QUANTIZATION, selection.job.constraints.quantizations)


def _is_in_other_region(selection: Selection) -> Bools | None:
    return _is_none_of(selection, REGION, selection.job.constraints.regions)


def _is_none_of(selection: Selection, column: int, words: tuple[str, ...]) -> Bools | None:
    if not words:
        return None
    codes = selection.rows.code(column)
    rejected: Bools = codes != code_of(words[0])
    for word in words[1:]:
        rejected &= codes != code_of(word)
    return rejected


def _is_isolated_too_weakly(selection: Selection) -> Bools | None:
    rank = selection.job.constraints.isolation.rank
    return selection.rows.code(TIER) < rank if rank else None


def _collects_data(selection: Selection) -> Bools | None:
    if selection.job.constraints.data_collection is DataCollection.ALLOW:
        return None
    rejected: Bools = selection.rows.code(COLLECTS) != 0
    return rejected


def _lacks_features(selection: Selection) -> Bools | None:
    wanted = features_mask(selection.job.constraints.features)
    if not wanted:
        return None
    rejected: Bools = (selection.rows.code(FEATURES) & wanted) != wanted
    return rejected


def _barring_flags(selection: Selection) -> Ints:
    """Our own clients do not dial."""
    flags: Ints = selection.rows.code(FLAGS)
    return flags if selection.job.vantage.dials else flags & ~NOT_DIALABLE


def _cannot_be_dialled(selection: Selection) -> Bools:
    rejected: Bools = (_barring_flags(selection) & NOT_DIALABLE) != 0
    return rejected


def _has_flag(flag: int) -> Filter:
    return lambda selection: (selection.rows.code(FLAGS) & flag) != 0


def _is_expired(selection: Selection) -> Bools:
    return selection.rows.value(EXPIRES_MS) <= selection.now_ms


def _is_full(selection: Selection) -> Bools:
    """Claims are a ceiling; below it, a node has the seats that it has earned. A batch job, and a
    lease ahead of its job, take none in the queue: only what would be idle."""
    seats = np.floor(selection.standings.seats())
    claimed = selection.rows.value(SLOTS if selection.job.needs_idle_seat else ROOM)
    is_full: Bools = selection.busy() >= np.minimum(claimed, seats)
    return is_full


def _is_on_unproven_machine(selection: Selection) -> Bools:
    """Nodes without a record share what their machine may take."""
    rejected = selection.machines.is_full(selection.rows.code(MACHINE))
    rejected &= ~selection.standings.is_proven()
    return rejected


def _is_open(selection: Selection) -> Bools:
    return selection.standings.is_open(selection.now_ms)


def _is_cooling(selection: Selection) -> Bools:
    cooling = selection.standings.is_cooling(selection.now_ms)
    return cooling if selection.is_resting is None else cooling | selection.is_resting


# Beside these, any flag rejects; it takes `FLAG_FILTERS` only to say which.
FILTERS: tuple[tuple[Reason, Filter], ...] = (
    (Reason.WRONG_TASK, _has_wrong_task),
    (Reason.CONTEXT_TOO_SHORT, _has_too_short_context),
    (Reason.PRICE_ABOVE_MAX, _asks_more_than_max_price),
    (Reason.COST_ABOVE_MAX, _may_cost_more_than_max),
    (Reason.QUANTIZATION, _has_other_quantization),
    (Reason.REGION, _is_in_other_region),
    (Reason.ISOLATION_TOO_WEAK, _is_isolated_too_weakly),
    (Reason.DATA_COLLECTION, _collects_data),
    (Reason.FEATURES, _lacks_features),
    (Reason.EXPIRED, _is_expired),
    (Reason.BUSY, _is_full),
    (Reason.MACHINE_UNPROVEN, _is_on_unproven_machine),
    (Reason.BREAKER_OPEN, _is_open),
    (Reason.COOLING_DOWN, _is_cooling),
)

FLAG_FILTERS: tuple[tuple[Reason, Filter], ...] = (
    (Reason.UNREACHABLE, _has_flag(UNREACHABLE)),
    (Reason.NOT_DIALABLE, _cannot_be_dialled),
    (Reason.DRAINING, _has_flag(DRAINING)),
    (Reason.MODEL_UNAVAILABLE, _has_flag(UNAVAILABLE)),
    (Reason.KEY_CONFLICT, _has_flag(SUSPENDED)),
)

# Copying the rows that fit pays only if the work that follows shrinks by more than that.
_COPY_BELOW_SHARE = 0.25


def named_nodes(job: Job) -> tuple[PeerId, ...] | None:
    """The only nodes that the client allows, or None for any."""
    constraints = job.constraints
    if constraints.order and not constraints.allow_fallbacks:
        allowed = set(constraints.only)
        return tuple(n for n in constraints.order if not allowed or n in allowed)
    return constraints.only or None


def select(
    table: ModelTable, machines: Machines, reputation: Reputation, job: Job, *, now_ms: int
) -> Selection:
    """Every row that could be considered: only the named ones, where the client names them."""
    names = named_nodes(job)
    rows = table.rows() if names is None else table.rows_of(names)
    return selection_of(table, rows, machines, reputation, job, now_ms=now_ms)


def selection_of(
    table: ModelTable,
    rows: Rows,
    machines: Machines,
    reputation: Reputation,
    job: Job,
    *,
    now_ms: int,
) -> Selection:
    """These rows with all that is known of their nodes."""
    standings = reputation.standings(rows.code(STANDING), now_ms=now_ms)
    found = (position_of(table, rows, node) for node in job.resting)
    resting = [position for position in found if position is not None]
    is_resting: Bools | None = None
    if resting:
        is_resting = np.zeros(rows.size, np.bool_)
        is_resting[resting] = True
    client_rtt_ms = _client_rtt_ms(table, rows, job) if job.vantage.rtt_ms else None
    return Selection(rows, standings, machines, job, now_ms, is_resting, client_rtt_ms)


def _client_rtt_ms(table: ModelTable, rows: Rows, job: Job) -> Floats:
    rtt_ms = rows.value(RTT_MS).copy()
    for node, measured_ms in job.vantage.rtt_ms.items():
        position = position_of(table, rows, node)
        if position is not None:
            rtt_ms[position] = measured_ms
    return rtt_ms


def fitting(table: ModelTable, selection: Selection) -> tuple[Selection, Ints]:
    """The positions that no filter rejects and the client has not ruled out by name, and the
    selection that they refer to: a smaller one where few are left."""
    rows = selection.rows
    rejected = ruled_out(table, selection)
    rejected |= _barring_flags(selection) != 0
    for _, rejects in FILTERS:
        found = rejects(selection)
        if found is not None:
            rejected |= found
    kept: Ints = (~rejected).nonzero()[0]
    if len(kept) >= rows.size * _COPY_BELOW_SHARE:
        return selection, kept
    return selection.narrowed(kept), np.arange(len(kept))


def ruled_out(table: ModelTable, selection: Selection) -> Bools:
    """The rows of nodes to ignore and of those already tried."""
    rejected: Bools = np.zeros(selection.rows.size, np.bool_)
    job = selection.job
    for node in (*job.constraints.ignore, *job.exclude):
        position = position_of(table, selection.rows, node)
        if position is not None:
            rejected[position] = True
    return rejected


def position_of(table: ModelTable, rows: Rows, node: PeerId) -> int | None:
    """Where in this selection a node is."""
    row = table.row_of.get(node)
    if row is None or rows.index is None:
        return row
    found = np.flatnonzero(rows.index == row)
    return int(found[0]) if len(found) else None


def fits_exactly(offer: NodeOffer, model: ModelOffer, job: Job) -> bool:
    """The last word on what columns hold only approximately: words as hashes, charges as floats."""
    if broken_constraint(job.constraints, offer, model, is_batch=job.is_batch) is not None:
        return False
    limit_nano, price = job.constraints.max_cost_nano, model.asked_price(is_batch=job.is_batch)
    return limit_nano is None or cost_nano(price, job.maximum) <= limit_nano
