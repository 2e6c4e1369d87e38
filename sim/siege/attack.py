"""What an attack is, and what it finds: the words that all files of the siege share."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.siege.ground import Ground

# One attack with its measurements. The slowest waits for a lone receipt to fall due.
ATTACK_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class AttackResult:
    """What an honest party measured without the attack and with it, and whether the market held.

    The two texts are for people; `held` is decided by the attack from the figures in them.
    """

    held: bool
    honest_before: str
    honest_under: str


@dataclass(frozen=True, slots=True)
class Attack:
    """`row` is where it stands in the list of known attacks, `does` what the attacker does."""

    name: str
    row: str
    does: str
    run: Callable[["Ground"], Awaitable[AttackResult]]
