"""What a job would cost on each node, and how long it would take there.

    first output = round trip + load
                 + (overhead + queue wait + prefill + one decode step) x first ratio
    total        = first output + (output tokens - 1) x decode step x decode ratio

Waits and speeds are the node's claims; the ratios are what was measured of its earlier jobs
(`market.standings`). A wait that is systematically wrong is corrected along with the prefill,
because both are inside the bracket that the measurement covers.

The load of a cold model takes what its node says: what a job of a loaded one took says nothing of
it. A first output that came late after a load counts against the node like any other.
"""

from dataclasses import dataclass

import numpy as np

from coordinator.market.matching.claim import Claim
from coordinator.market.matching.filters import Selection, costs
from coordinator.market.matching.job import Latency
from coordinator.market.offers.entry import RTT_UNKNOWN_MS
from coordinator.market.offers.table import DECODE_MS, LOAD_MS, PREFILL_MS, SLOTS
from coordinator.market.standings import Bools, Floats

# Admission, frames and the first sampling. Without it, short prompts on fast nodes would claim to
# take microseconds, and any measurement would then be an absurd multiple of that.
OVERHEAD_MS = 5.0

# Below this many recent measurements an estimate is a guess, and a guess refuses no node. Estimates
# that were trusted too early turned away 71 % of servable jobs elsewhere (d-inference#381).
CERTAIN_MEASUREMENTS = 3.0
# Even a good estimate is an average; only a miss by half again is certain to be one.
CERTAIN_MISS = 1.5

_MS_PER_S = 1_000


@dataclass(frozen=True, slots=True)
class Estimates:
    """One value per row. Times are corrected; those called claimed are not."""

    cost_nano: Floats
    rtt_ms: Floats
    queue_ms: Floats
    prefill_ms: Floats
    decode_ms: Floats
    load_ms: Floats
    first_output_ms: Floats
    total_ms: Floats
    unit_ms: Floats  # per output token, or per input unit where there is no output
    claimed_first_ms: Floats
    claimed_step_ms: Floats

    def latency(self, position: int) -> Latency:
        return Latency(
            float(self.rtt_ms[position]),
            float(self.queue_ms[position]),
            float(self.prefill_ms[position]),
            float(self.decode_ms[position]),
            float(self.load_ms[position]),
        )

    def claim(self, position: int) -> Claim:
        return Claim(float(self.claimed_first_ms[position]), float(self.claimed_step_ms[position]))


def estimate(selection: Selection) -> Estimates:
    """Costs and times of the expected units on every row."""
    rows, standings, units = selection.rows, selection.standings, selection.job.expected
    first_ratio, decode_ratio = standings.first_ratio(), standings.decode_ratio()
    input_units = units.input_tokens + units.images + units.tensor_elements
    prefill_ms = rows.value(PREFILL_MS) * input_units
    step_ms = rows.value(DECODE_MS) if units.output_tokens else np.zeros(rows.size)
    own_ms = prefill_ms + step_ms * units.output_tokens + OVERHEAD_MS
    queue_ms = _queue_wait(selection.busy(), rows.value(SLOTS), own_ms)
    start_ms = prefill_ms + step_ms + OVERHEAD_MS
    decode_ms = step_ms * decode_ratio * max(units.output_tokens - 1, 0)
    rtt_ms, load_ms = selection.rtt_ms(), rows.value(LOAD_MS)
    first_ms = rtt_ms + load_ms + (queue_ms + start_ms) * first_ratio
    is_generation = units.output_tokens > 0
    return Estimates(
        cost_nano=costs(rows, units, is_batch=selection.job.is_batch),
        rtt_ms=rtt_ms,
        queue_ms=queue_ms * first_ratio,
        prefill_ms=start_ms * first_ratio,
        decode_ms=decode_ms,
        load_ms=load_ms,
        first_output_ms=first_ms,
        total_ms=first_ms + decode_ms,
        unit_ms=(step_ms * decode_ratio if is_generation else rows.value(PREFILL_MS) * first_ratio),
        claimed_first_ms=load_ms + queue_ms + start_ms,
        claimed_step_ms=step_ms,
    )


def _queue_wait(busy: Floats, slots: Floats, job_ms: Floats) -> Floats:
    """How long a job waits for a slot, taking the jobs ahead to be like itself: with all slots
    taken, one frees up every `job_ms / slots` on average."""
    ahead = np.maximum(busy + 1.0 - slots, 0.0)
    return ahead / slots * job_ms


@dataclass(frozen=True, slots=True)
class Misses:
    """Which rows we expect to miss a limit, and which of them for certain."""

    is_over: Bools
    is_certain: Bools


def latency_misses(selection: Selection, estimates: Estimates) -> Misses | None:
    """Rows whose first output comes after `max_latency`. None if the job states none."""
    limit_ms = selection.job.constraints.max_latency_ms
    if limit_ms is None:
        return None
    found = _misses(selection, estimates, estimates.first_output_ms, limit_ms)
    # No output comes before a round trip, and that was measured, or else is no claim of the node's.
    rtt_ms = estimates.rtt_ms
    is_too_far = (rtt_ms > limit_ms) & (rtt_ms != RTT_UNKNOWN_MS)
    return Misses(found.is_over, found.is_certain | is_too_far)


def wish_misses(selection: Selection, estimates: Estimates) -> Bools | None:
    """Rows that should not meet what the client would rather have. None if it has no wishes."""
    constraints = selection.job.constraints
    missed: Bools | None = None
    if constraints.preferred_latency_ms is not None:
        missed = estimates.first_output_ms > constraints.preferred_latency_ms
    if constraints.preferred_tps:
        is_slow = estimates.unit_ms * constraints.preferred_tps > _MS_PER_S
        missed = is_slow if missed is None else missed | is_slow
    return missed


def deadline_misses(selection: Selection, estimates: Estimates) -> Misses | None:
    """Rows that would finish after the deadline. None if the job has none."""
    if selection.job.deadline_at_ms is None:
        return None
    remaining_ms = selection.job.deadline_at_ms - selection.now_ms
    return _misses(selection, estimates, estimates.total_ms, remaining_ms)


def _misses(
    selection: Selection, estimates: Estimates, expected_ms: Floats, limit_ms: float
) -> Misses:
    is_certain = expected_ms > limit_ms * CERTAIN_MISS
    is_certain &= selection.standings.measurements() >= CERTAIN_MEASUREMENTS
    # A node's own word that it cannot do it needs no measurement.
    is_certain |= estimates.load_ms > limit_ms
    return Misses(expected_ms > limit_ms, is_certain)
