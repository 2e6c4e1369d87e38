"""Which nodes should run a job, in order, and why; or why none can.

The path of one decision is `decide`: `filters` drop what the constraints exclude, `estimate` says
what each remaining node would cost and how long it would take, `score` turns that into one number,
`choose` picks among near-equals, and `explain` tells the reasons when asked or when nothing fits.
Everything is arithmetic on the columns of one model's table; nothing here waits or changes state.
"""

from coordinator.market.matching.decide import match
from coordinator.market.matching.job import (
    HERE,
    Candidate,
    Job,
    Match,
    Reason,
    Rejection,
    Vantage,
    Why,
)

__all__ = [
    "HERE",
    "Candidate",
    "Job",
    "Match",
    "Reason",
    "Rejection",
    "Vantage",
    "Why",
    "match",
]
