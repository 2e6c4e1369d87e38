"""One number per node for one objective, lower for better, and what counts as near-equal.

Every score is a plain quantity (nano-credits, milliseconds) divided by the probability that the job
succeeds there: the expected amount until it does, if each failure costs another try like it.

- `price`: expected cost. Then, among those within 1 %, the expected time.
- `latency`: expected time until the whole answer is there. Then the cost.
- `throughput`: expected time per output token once it runs (per input unit if there is no output).
  Then the cost.
- `balanced`: sqrt(cost x time). The geometric mean has no unit and needs no exchange rate: being
  twice as cheap is worth being twice as slow. It compares two nodes by their ratio alone, so no
  node can tilt a choice between others by listing absurd offers, as with shares of the minimum,
  maximum or mean. The floor under the cost keeps a free node from winning whatever its speed.
"""

from dataclasses import dataclass

import numpy as np

from coordinator.market.matching.estimate import Estimates
from coordinator.market.standings import Floats
from protocol.messages import Objective

# A millionth of a credit: no client waits longer to save less.
COST_FLOOR_NANO = 1_000.0

# Prices are exact, so only trifles are equal; estimated times are not better than this.
NEAR_PRICE = 1.01
NEAR_TIME = 1.15


@dataclass(frozen=True, slots=True)
class Scores:
    """`primary` ranks. Rows within `near` of the best are equals; those are told apart by
    `secondary` (within NEAR_TIME of its best), if there is one."""

    primary: Floats
    near: float
    secondary: Floats | None


def score(objective: Objective, estimates: Estimates, success: Floats) -> Scores:
    """The module's formulas."""
    cost = estimates.cost_nano / success
    time = estimates.total_ms / success
    if objective is Objective.PRICE:
        return Scores(cost, NEAR_PRICE, time)
    if objective is Objective.LATENCY:
        return Scores(time, NEAR_TIME, cost)
    if objective is Objective.THROUGHPUT:
        return Scores(estimates.unit_ms / success, NEAR_TIME, cost)
    return Scores(np.sqrt(np.maximum(cost, COST_FLOOR_NANO) * time), NEAR_TIME, None)
