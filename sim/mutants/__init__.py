"""Deliberate bugs, each with the seeds or the test that has to notice it.

A bug that survives means that a test is missing. Nothing here imports the market's packages: the
process that runs a mutant reads this table before it may import what the mutant changes.
"""

from sim.mutants.ahead import AHEAD
from sim.mutants.keys import KEYS
from sim.mutants.leases import LEASES
from sim.mutants.market import MARKET
from sim.mutants.money import MONEY
from sim.mutants.mutant import Mutant
from sim.mutants.node import NODE
from sim.mutants.purchases import PURCHASES
from sim.mutants.settling import SETTLING
from sim.mutants.wire import WIRE

MUTANTS: tuple[Mutant, ...] = (
    *MONEY,
    *KEYS,
    *SETTLING,
    *LEASES,
    *AHEAD,
    *WIRE,
    *MARKET,
    *NODE,
    *PURCHASES,
)


def find_mutant(name: str) -> Mutant:
    """Raises LookupError if no mutant has this name."""
    for mutant in MUTANTS:
        if mutant.name == name:
            return mutant
    raise LookupError(f"there is no mutant {name!r}")
