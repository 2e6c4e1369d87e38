"""What the next tokens of one answer may be, and how likely: drafts by prompt lookup.

A place where the last tokens stood before is followed from token to token while it guesses right.
Each guess is compared with the token that came, whether a step was spent on it or not: so a text
that does not repeat itself gets no drafts, and costs nothing but the look.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from capanode.engines.prompt_lookup import RUN_MAX, SeenPlaces

# More tokens at once would be a small gain: a step that takes so many has cost about three.
DRAFT_TOKENS_MAX = 15

# What is believed of a guess behind 2, 4, 8 and 16 equal tokens or more, before any was compared,
# and how many comparisons that belief is worth.
_BELIEVED = {2: 0.5, 3: 0.65, 4: 0.8, 5: 0.9}
_BELIEF_WEIGHT = 4
# Then half of them are forgotten: a text changes.
_COMPARED_MAX = 32


@dataclass(slots=True)
class _Tally:
    right: float
    compared: float = _BELIEF_WEIGHT

    @property
    def share(self) -> float:
        return self.right / self.compared

    def note(self, *, is_right: bool) -> None:
        if self.compared >= _COMPARED_MAX:
            self.right, self.compared = self.right / 2, self.compared / 2
        self.right += is_right
        self.compared += 1


def _first_tallies() -> dict[int, _Tally]:
    return {level: _Tally(share * _BELIEF_WEIGHT) for level, share in _BELIEVED.items()}


@dataclass(slots=True)
class Drafter:
    """Follows one text. `_source` is the place whose tokens are the guess, behind `_run` tokens
    that are also the last ones of the text."""

    _places: SeenPlaces = field(default_factory=SeenPlaces)
    _tallies: dict[int, _Tally] = field(default_factory=_first_tallies)
    _source: int | None = None
    _run: int = 0
    _read: int = 0

    def draft(
        self, tokens: Sequence[int], most: int, *, odds_min: float
    ) -> list[tuple[int, float]]:
        """Up to `most` tokens that may follow, each with the odds that it and all before it are
        right. The text is the one of the last call, with what came since."""
        self._compare(tokens)
        self._places.read(tokens)
        if self._source is None:
            self._source, self._run = self._places.find(tokens) or (None, 0)
        if self._source is None:
            return []
        drafted: list[tuple[int, float]] = []
        odds, period = 1.0, len(tokens) - self._source
        for index in range(min(most, DRAFT_TOKENS_MAX)):
            odds *= self._tally(self._run + index).share
            if odds < odds_min:
                break
            # A text that repeats itself is taken to go on so.
            drafted.append((tokens[self._source + index % period], odds))
        return drafted

    def _compare(self, tokens: Sequence[int]) -> None:
        """See how far the last guess was right."""
        for place in range(self._read, len(tokens)):
            if self._source is None:
                break
            is_right = tokens[self._source] == tokens[place]
            self._tally(self._run).note(is_right=is_right)
            self._source = self._source + 1 if is_right else None
            self._run = min(self._run + 1, RUN_MAX)
        self._read = len(tokens)

    def _tally(self, run: int) -> _Tally:
        return self._tallies[min(run, RUN_MAX).bit_length()]
