"""What the world outside gives a node: time, chance, and where blocking writes run. A simulation
brings its own of each."""

import os
import random
from dataclasses import dataclass

from capanode.outbox import Runner, ThreadRunner
from protocol.clock import Clock, Entropy
from protocol.net.clock import SystemClock


@dataclass(frozen=True, slots=True)
class Runtime:
    """`entropy` makes keys, `rng` only spreads load; `outbox_runner` keeps blocking writes away."""

    clock: Clock
    entropy: Entropy
    rng: random.Random
    outbox_runner: Runner

    def child_rng(self) -> random.Random:
        """A source of its own for each part, so that one part's draws do not shift another's."""
        return random.Random(self.rng.getrandbits(64))  # noqa: S311 - spreads load, guards nothing


def system_runtime() -> Runtime:
    """The real thing."""
    return Runtime(SystemClock(), os.urandom, random.SystemRandom(), ThreadRunner())
