"""What a mutant is: one deliberate bug, and where it has to be noticed."""

from dataclasses import dataclass

# A bug that no seed up to this one notices needs a named test.
SEEDS_MAX = 25


@dataclass(frozen=True, slots=True)
class Mutant:
    """In `file`, the one place with the text `before` becomes `after`.

    The simulator runs the seeds from 1 to `seeds`, until one breaks an invariant. If none does, the
    pytest id `test` decides. Either may be missing, not both.
    """

    name: str
    # Below the repository's root; of the market's own packages.
    file: str
    before: str
    after: str
    seeds: int = 0
    test: str = ""

    @property
    def module(self) -> str:
        """The name under which Python imports the file."""
        return self.file.removesuffix(".py").replace("/", ".")
