"""What a mutant is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One replacement in one source file, wherever `before` stands in it."""

    name: str
    # File under contracts/parts, without its ending.
    part: str
    before: str
    after: str
    # File and name of the test that notices: `roots:a_challenge_costs_a_bond`.
    killed_by: str


def drop(name: str, part: str, line: str, killed_by: str) -> Mutant:
    """The check is simply not made."""
    return Mutant(name, part, line, "pass", killed_by)
