"""The policy `utilization`: ask for more while the node is full and for less while it is idle.

Pure steps; who takes them, and when, is `capanode.price_keeper`.
"""

from dataclasses import dataclass
from enum import StrEnum

from protocol.money import divide_up
from protocol.pricing import PERCENT, PRICE_NANO_MAX, PriceSheet, with_each

# What a step adds or takes. Going up is quicker: a full node refuses jobs at its price now, an idle
# one only may be too dear.
STEP_UP_PERCENT = 10
STEP_DOWN_PERCENT = 5
# Between these shares of the slots the price stays.
IDLE_BELOW = 0.3
FULL_ABOVE = 0.8


class PricePolicy(StrEnum):
    """How the prices that the owner leaves open move."""

    FIXED = "fixed"
    UTILIZATION = "utilization"


@dataclass(frozen=True, slots=True)
class PriceBounds:
    """Of the price that the hardware's hourly rate proposes, in percent."""

    floor_percent: int
    ceiling_percent: int


def next_percent(percent: int, utilization: float, bounds: PriceBounds) -> int:
    """What to ask next, in percent of the proposed price, after a time at `utilization` (0 … 1)."""
    if utilization >= FULL_ABOVE:
        percent += STEP_UP_PERCENT
    elif utilization <= IDLE_BELOW:
        percent -= STEP_DOWN_PERCENT
    return max(bounds.floor_percent, min(percent, bounds.ceiling_percent))


def scaled(price: PriceSheet, percent: int) -> PriceSheet:
    """Each position at so many percent, rounded up: what costs something never becomes free."""
    return with_each(price, lambda nano: min(divide_up(nano * percent, PERCENT), PRICE_NANO_MAX))
