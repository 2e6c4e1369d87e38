"""Who goes away without a word: flap damping, as routers do it with each other (RFC 2439).

Each loss adds to a penalty that fades with time. Above a threshold the node is unsteady: it gets a
job only where no steady node has room, because all that runs there is cut with the next loss. Its
answers in between do not help, because they say nothing of how long it stays.
"""

import math
from dataclasses import dataclass

# What `health` says of such a node whose breaker is closed.
UNSTEADY = "unsteady"

# Ten minutes, as for all that is remembered of nodes: one loss in an hour is no habit.
HALF_LIFE_MS = 600_000
# So many recent losses make a node unsteady: the second one within six minutes.
UNSTEADY_LOSSES = 1.6
# The nodes of one machine go away together; that is one loss of the machine.
SAME_LOSS_MS = 2_000


@dataclass(slots=True)
class Steadiness:
    """The losses of one node, or of one machine."""

    losses: float = 0.0  # as of `lost_at_ms`
    lost_at_ms: int | None = None
    unsteady_until_ms: int = 0

    def on_loss(self, now_ms: int) -> None:
        """It went away without notice."""
        if self.lost_at_ms is not None:
            age_ms = max(0, now_ms - self.lost_at_ms)
            if age_ms < SAME_LOSS_MS:
                return
            self.losses *= 2.0 ** -(age_ms / HALF_LIFE_MS)
        self.losses += 1.0
        self.lost_at_ms = now_ms
        if self.losses > UNSTEADY_LOSSES:
            half_lives = math.log2(self.losses / UNSTEADY_LOSSES)
            self.unsteady_until_ms = now_ms + round(half_lives * HALF_LIFE_MS)

    @property
    def remembered_until_ms(self) -> int:
        """The last loss counts against a node of an unsteady machine until then."""
        return 0 if self.lost_at_ms is None else self.lost_at_ms + HALF_LIFE_MS
