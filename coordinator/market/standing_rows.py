"""The rows of numbers behind `market.standings`: how events are counted, and how counts fade.

Counts fade with forward decay (Cormode et al., "Forward decay", ICDE 2009): instead of shrinking
old counts, a new event is counted as `growth = 2^(age of the landmark / half-life)`. Any count
divided by today's growth is the decayed count, so that matching pays for one scalar and not for one
exponential per node.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.market.seats import after_answer, after_failure, after_refusal
from coordinator.market.standings import (
    COOLING_UNTIL,
    DECAYING,
    DECODE_LOG,
    DECODE_WEIGHT,
    EARNED,
    FAILURES,
    FAMILIAR,
    FIELDS,
    FIRST_LOG,
    FIRST_WEIGHT,
    LOST_UNTIL,
    OPEN_UNTIL,
    PRIOR_RATIO,
    SEATS,
    SUCCESSES,
    UNSTEADY_UNTIL,
    Standings,
)

# Ten minutes: long enough to remember an outage, short enough to forgive a repaired node.
HALF_LIFE_MS = 600_000
# The growth must stay far below the 2^1023 that a float64 holds; counts that old are dust anyway.
_REBASE_HALF_LIVES = 64
_HALF_LIVES_MAX = 1_000

# A closed breaker also opens on a node that fails half its jobs but never three in a row.
FAILS_OFTEN_SHARE = 0.5
FAILS_OFTEN_WEIGHT = 6.0

# One measurement moves the average by at least a twentieth, so that a node that slows down shows.
RATIO_WEIGHT_MAX = 20.0
# A stalled client or a lucky cache makes single measurements absurd; none counts beyond 64 times.
RATIO_LOG_MAX = math.log(64)


@dataclass(frozen=True, slots=True)
class Ratios:
    """Measured time over claimed time, per phase; None where a job had no such phase."""

    first: float | None = None
    decode: float | None = None


NO_RATIOS = Ratios()


class StandingRows:
    """One row per node, named by its number ("slot"). `Standings` reads many of them at once."""

    def __init__(self, *, seats_at_start: float) -> None:
        self._seats_at_start = seats_at_start
        self._slots_used = 0
        self._free_slots: list[int] = []
        self._matrix: NDArray[np.float64] = np.zeros((64, FIELDS))
        self._landmark_ms = 0

    def take(self) -> int:
        """A row for a node of which nothing is known."""
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot = self._slots_used
            self._slots_used += 1
        if slot >= len(self._matrix):
            self._matrix = np.vstack([self._matrix, np.zeros_like(self._matrix)])
        self._matrix[slot] = 0.0
        self._matrix[slot, SEATS] = self._seats_at_start
        return slot

    def give_back(self, slot: int) -> None:
        """The node is forgotten; another may get its row."""
        self._free_slots.append(slot)

    # Reading.

    def read(self, slots: NDArray[np.int64], *, now_ms: int) -> Standings:
        """A copy of these rows."""
        growth = self._growth(now_ms)
        return Standings(self._matrix.take(slots, axis=0), growth)

    def seats(self, slot: int) -> int:
        """Whole seats: jobs that the node may have at once."""
        return int(self._matrix[slot][SEATS])

    def fails_often(self, slot: int, now_ms: int) -> bool:
        """At least half of its recent jobs failed, and there were enough of them to say so."""
        growth = self._growth(now_ms)
        row = self._matrix[slot]
        weight = (row[SUCCESSES] + row[FAILURES]) / growth
        return bool(
            weight >= FAILS_OFTEN_WEIGHT and row[FAILURES] / growth >= FAILS_OFTEN_SHARE * weight
        )

    # Writing.

    def count(self, slot: int, column: int, now_ms: int, weight: float) -> None:
        """One more event of this kind: SUCCESSES, FAILURES or REFUSALS."""
        growth = self._growth(now_ms)
        row = self._matrix[slot]
        row[column] += weight * growth
        if column == SUCCESSES:
            row[EARNED] += weight
        row[FAMILIAR] += weight

    def make_unfamiliar(self, slot: int) -> None:
        """From now on the node is explored like a new one."""
        self._matrix[slot, FAMILIAR] = 0.0

    def block(self, slot: int, *, open_until_ms: int, cooling_until_ms: int) -> None:
        """Until when its breaker and its cooldown keep jobs away."""
        row = self._matrix[slot]
        row[OPEN_UNTIL] = open_until_ms
        row[COOLING_UNTIL] = cooling_until_ms

    def note_losses(self, slot: int, *, lost_until_ms: int, unsteady_until_ms: int) -> None:
        """What its departures without notice count for, and until when."""
        row = self._matrix[slot]
        row[LOST_UNTIL] = lost_until_ms
        row[UNSTEADY_UNTIL] = unsteady_until_ms

    def earn_seats(self, slot: int, weight: float) -> None:
        """It answered a job; `weight` from 0 to 1 is how much of a proof that is."""
        row = self._matrix[slot]
        row[SEATS] = after_answer(float(row[SEATS]), weight)

    def lose_seats(self, slot: int) -> None:
        """It failed a job. What it had earned before is no record any more, unless it is recent."""
        row = self._matrix[slot]
        row[EARNED] = 0.0
        row[SEATS] = after_failure(float(row[SEATS]))

    def yield_seats(self, slot: int) -> None:
        """It refused a job."""
        row = self._matrix[slot]
        row[SEATS] = after_refusal(float(row[SEATS]))

    def learn(self, slot: int, ratios: Ratios, now_ms: int) -> None:
        """Correct what the node claims by what was measured."""
        for ratio, log_column, weight_column in (
            (ratios.first, FIRST_LOG, FIRST_WEIGHT),
            (ratios.decode, DECODE_LOG, DECODE_WEIGHT),
        ):
            if ratio is not None:
                self._average(slot, ratio, log_column, weight_column, now_ms)

    def _average(
        self, slot: int, ratio: float, log_column: int, weight_column: int, now_ms: int
    ) -> None:
        """Move the average of the logarithm, in which twice as fast cancels twice as slow and one
        absurd measurement weighs little. Stored as the deviation from the prior."""
        growth = self._growth(now_ms)
        row = self._matrix[slot]
        deviation = math.log(max(ratio, 1e-9) / PRIOR_RATIO)
        deviation = min(max(deviation, -RATIO_LOG_MAX), RATIO_LOG_MAX)
        weight = min(row[weight_column] / growth, RATIO_WEIGHT_MAX - 1.0)
        row[log_column] = (row[log_column] * weight + deviation) / (weight + 1.0)
        row[weight_column] = (weight + 1.0) * growth

    def _growth(self, now_ms: int) -> float:
        """What one event counts now. May move the landmark, which scales all counts down: so ask
        for it before reading any of them."""
        half_lives = (now_ms - self._landmark_ms) / HALF_LIFE_MS
        if half_lives > _REBASE_HALF_LIVES:
            self._matrix[:, DECAYING] *= 2.0 ** -min(half_lives, _HALF_LIVES_MAX)
            self._landmark_ms = now_ms
            half_lives = 0.0
        return float(2.0**half_lives)
