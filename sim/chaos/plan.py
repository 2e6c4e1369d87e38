"""What is hit, when and how, decided by a seed before anything runs. Pure."""

import random
from dataclasses import dataclass
from enum import StrEnum


class Blow(StrEnum):
    """KILL is SIGKILL, and the process is started again at once; FREEZE is SIGSTOP, and SIGCONT
    after some seconds."""

    KILL = "kill"
    FREEZE = "freeze"


class Victim(StrEnum):
    COORDINATOR = "coordinator"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class PlannedBlow:
    """One blow, `at_s` after the load began. `victim` chooses among the nodes, `lasts_s` is for a
    freeze."""

    at_s: float
    blow: Blow
    target: Victim
    victim: int
    lasts_s: float


# In eleven minutes: sixteen kills and eight freezes of the coordinator, and as many of nodes.
KILLS_PER_MINUTE = 16 / 11
FREEZES_PER_MINUTE = 8 / 11
# Short enough that a supervisor would not have ended the process, long enough to be noticed.
FREEZE_S = (0.5, 4.0)
# The load runs undisturbed for a moment before the first blow.
FIRST_AT_S = 2.0


def draw_plan(seed: int, *, lasts_s: float) -> list[PlannedBlow]:
    """The blows of one run in order. Each kind has a slot of its own length, and hits once in each
    slot, so that a short run is hit as evenly as a long one."""
    rng = random.Random(f"chaos {seed}")
    plan = []
    for blow, per_minute in ((Blow.KILL, KILLS_PER_MINUTE), (Blow.FREEZE, FREEZES_PER_MINUTE)):
        count = max(1, round(per_minute * lasts_s / 60))
        slot_s = (lasts_s - FIRST_AT_S) / count
        for target in Victim:
            for number in range(count):
                at_s = FIRST_AT_S + slot_s * (number + rng.random())
                victim = rng.randrange(1_000)
                plan.append(PlannedBlow(at_s, blow, target, victim, rng.uniform(*FREEZE_S)))
    return sorted(plan, key=lambda planned: planned.at_s)
