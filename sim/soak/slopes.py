"""Does a figure grow? A line through its samples, and how far they lie from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trend:
    """`first` and `last` are the ends of the line, `noise` the standard deviation of the samples
    around it. Units are those of the figure; `per_hour` is its slope."""

    first: float
    last: float
    per_hour: float
    noise: float

    def is_growing(self, *, at_least: float) -> bool:
        """Over the run by more than twice the noise, and by more than `at_least`: less is nothing
        that months would make much of."""
        return self.last - self.first > max(2 * self.noise, at_least)


def trend_of(times_s: Sequence[float], values: Sequence[float]) -> Trend:
    """The least-squares line through at least two samples at different times."""
    count = len(times_s)
    mean_time, mean_value = sum(times_s) / count, sum(values) / count
    spread = sum((at - mean_time) ** 2 for at in times_s)
    pairs = list(zip(times_s, values, strict=True))
    slope = sum((at - mean_time) * (value - mean_value) for at, value in pairs) / spread

    def line(at_s: float) -> float:
        return mean_value + slope * (at_s - mean_time)

    noise = math.sqrt(sum((value - line(at)) ** 2 for at, value in pairs) / count)
    return Trend(line(times_s[0]), line(times_s[-1]), 3_600 * slope, noise)
