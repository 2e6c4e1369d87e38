"""What matching reads of reputation: one row of numbers per node, and the estimates they stand for.

`market.standing_rows` writes the rows; here they are only interpreted, for many nodes at once.
Every estimate starts from a prior and moves away from it as evidence comes in, and back as the
evidence fades: no node is condemned for ever, and silence is no recommendation.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

# Columns of a row. Times are unix milliseconds, exact in a float64 until the year 287396.
OPEN_UNTIL = 0
COOLING_UNTIL = 1
SUCCESSES = 2  # forward-decayed counts: divide by the growth
FAILURES = 3
REFUSALS = 4
FIRST_LOG = 5  # mean log(measured / claimed) less the prior's, until the first token
FIRST_WEIGHT = 6
DECODE_LOG = 7  # the same per token after it
DECODE_WEIGHT = 8
FAMILIAR = 9  # outcomes seen since the node was new, or since its breaker last opened
SEATS = 10  # earned seats: jobs that it may have at once
EARNED = 11  # successes since its last failure; they do not fade
LOST_UNTIL = 12  # until when its last departure without notice is remembered
UNSTEADY_UNTIL = 13  # until when it counts as one that goes away often
FIELDS = 14

DECAYING = [SUCCESSES, FAILURES, REFUSALS, FIRST_WEIGHT, DECODE_WEIGHT]

# Claims come from a benchmark on an idle node, so an unmeasured one is taken to be slower by this.
PRIOR_RATIO = 1.25
# The prior weighs as much as half a measurement: who claims too much is found out in a few jobs.
PRIOR_RATIO_WEIGHT = 0.5
# A stranger is believed to succeed nine times in ten: a little worse than most, so that a fresh
# identity never outranks a good record, yet close enough to win by being cheaper or faster.
PRIOR_SUCCESSES = 9.0
PRIOR_FAILURES = 1.0
# Without evidence no node refuses; two attempts' worth of doubt about the first refusal.
PRIOR_ATTEMPTS = 2.0
# A node with so much success, recent or since its last failure, has a record of its own, and is not
# judged by its neighbours. A quiet time alone makes no node a stranger again.
PROVEN_SUCCESSES = 3.0

_PRIOR_LOG = math.log(PRIOR_RATIO)


@dataclass(frozen=True, slots=True)
class Standings:
    """Rows of the reputation matrix, and the growth that makes old counts comparable."""

    rows: Floats
    growth: float

    def select(self, index: Ints) -> "Standings":
        return Standings(self.rows.take(index, axis=0), self.growth)

    def is_open(self, now_ms: int) -> Bools:
        """The breaker is open, or its one probe is under way."""
        return self.rows[:, OPEN_UNTIL] > now_ms

    def is_cooling(self, now_ms: int) -> Bools:
        return self.rows[:, COOLING_UNTIL] > now_ms

    def is_unsteady(self, now_ms: int) -> Bools:
        """The node went away without notice several times lately."""
        return self.rows[:, UNSTEADY_UNTIL] > now_ms

    def was_lost(self, now_ms: int) -> Bools:
        """The node went away without notice at least once lately."""
        return self.rows[:, LOST_UNTIL] > now_ms

    def success(self) -> Floats:
        """The probability that a job sent there ends well, given that it is not refused."""
        good = self.rows[:, SUCCESSES] + PRIOR_SUCCESSES * self.growth
        bad = self.rows[:, FAILURES] + PRIOR_FAILURES * self.growth
        return good / (good + bad)

    def refusal_rate(self) -> Floats:
        """The share of recent attempts that were refused."""
        refused = self.rows[:, REFUSALS]
        others = self.rows[:, SUCCESSES] + self.rows[:, FAILURES] + PRIOR_ATTEMPTS * self.growth
        return refused / (refused + others)

    def first_ratio(self) -> Floats:
        """What to multiply a claimed time to the first output with."""
        return self._ratio(FIRST_LOG, FIRST_WEIGHT)

    def decode_ratio(self) -> Floats:
        """What to multiply a claimed time per output token with."""
        return self._ratio(DECODE_LOG, DECODE_WEIGHT)

    def seats(self) -> Floats:
        """How many jobs the node may have at once, by what it has answered."""
        return self.rows[:, SEATS]

    def is_proven(self) -> Bools:
        """The node has a record of its own."""
        is_recent: Bools = self.rows[:, SUCCESSES] >= PROVEN_SUCCESSES * self.growth
        return is_recent | (self.rows[:, EARNED] >= PROVEN_SUCCESSES)

    def measurements(self) -> Floats:
        """Recent measurements behind `first_ratio`; fades with time."""
        return self.rows[:, FIRST_WEIGHT] / self.growth

    def familiar(self) -> Floats:
        return self.rows[:, FAMILIAR]

    def _ratio(self, log_column: int, weight_column: int) -> Floats:
        weight = self.rows[:, weight_column]
        shrunk = self.rows[:, log_column] * (weight / (weight + PRIOR_RATIO_WEIGHT * self.growth))
        ratio: Floats = np.exp(shrunk + _PRIOR_LOG)
        return ratio
