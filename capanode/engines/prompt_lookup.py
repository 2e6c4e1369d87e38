"""Where the last tokens of a text stood in it before.

Answers repeat their prompts where they rewrite, quote or extract, so what followed there is a good
guess at what follows here (prompt lookup decoding: github.com/apoorvumang/prompt-lookup-decoding).
"""

from array import array
from collections.abc import Sequence

# So many last tokens are looked up, more of them first.
_LOOKED_UP = (3, 2)

# Places that are remembered for each of them, in 32 KiB: twice a job's context on a CPU. Of two
# places that meet in one slot the later one stays.
_SLOTS = 8192

# Equal tokens before two places are counted up to here.
RUN_MAX = 16


class SeenPlaces:
    """An index of one text that grows. To add or to look up a token takes a few microseconds,
    however long the text is."""

    def __init__(self) -> None:
        self._slots = {count: array("i", [0]) * _SLOTS for count in _LOOKED_UP}
        self._read = 1

    def read(self, tokens: Sequence[int]) -> None:
        """Remember the places of all tokens that were not read before."""
        for place in range(self._read, len(tokens)):
            for count, slots in self._slots.items():
                if place >= count:
                    slots[_slot(tokens, place, count)] = place
        self._read = max(self._read, len(tokens))

    def find(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """The latest place behind tokens that are also the last ones of the text, and how many they
        are."""
        for count, slots in self._slots.items():
            if len(tokens) >= count:
                place = slots[_slot(tokens, len(tokens), count)]
                run = _equal_before(tokens, place)
                if run >= count:  # Else another place took the slot.
                    return place, run
        return None


def _slot(tokens: Sequence[int], end: int, count: int) -> int:
    return hash(tuple(tokens[end - count : end])) % _SLOTS


def _equal_before(tokens: Sequence[int], place: int) -> int:
    """How many tokens before a place are the last ones of the text, up to `RUN_MAX`."""
    most, end = min(place, RUN_MAX), len(tokens)
    return next(
        (run for run in range(most) if tokens[place - 1 - run] != tokens[end - 1 - run]), most
    )
