"""Guesses at how a text goes on, from the text alone."""

import random
from collections.abc import Sequence

import pytest

from capanode.engines.drafter import DRAFT_TOKENS_MAX, Drafter
from capanode.engines.prompt_lookup import RUN_MAX, SeenPlaces

SOURCE = list(range(1000, 1200))


def grown(start: Sequence[int], more: Sequence[int], *, odds_min: float = 0.5) -> list[list[int]]:
    """What is drafted before each token of `more`, which follow `start` one by one."""
    drafter, tokens = Drafter(), list(start)
    drafts = []
    for token in more:
        drafts.append([guess for guess, _ in drafter.draft(tokens, 99, odds_min=odds_min)])
        tokens.append(token)
    return drafts


def test_the_latest_place_behind_the_same_tokens_is_found() -> None:
    places, tokens = SeenPlaces(), [1, 2, 3, 7, 1, 2, 3, 8, 5, 2, 3]
    places.read(tokens)
    assert places.find(tokens) == (7, 2)
    tokens[-2:] = [1, 2, 3]
    places = SeenPlaces()
    places.read(tokens)
    assert places.find(tokens) == (7, 3)
    assert places.find([4, 9]) is None
    assert places.find([3]) is None


def test_an_index_that_is_read_bit_by_bit_finds_what_a_search_finds() -> None:
    rng = random.Random(3)
    places, tokens = SeenPlaces(), [0]
    for _ in range(400):
        tokens += [rng.randrange(6) for _ in range(rng.choice((1, 1, 5)))]
        places.read(tokens)
        end = len(tokens)
        wanted = [
            place
            for count in (3, 2)
            for place in range(end - 1, count - 1, -1)
            if tokens[place - count : place] == tokens[end - count :]
        ]
        found = places.find(tokens)
        assert (found[0] if found is not None else None) == next(iter(wanted), None)


def test_a_text_that_copies_gets_longer_and_longer_drafts_that_are_right() -> None:
    drafts = grown(SOURCE, SOURCE[:100])
    assert not any(drafts[:2])
    for place, draft in enumerate(drafts):
        assert draft == SOURCE[place : place + len(draft)]
    lengths = list(map(len, drafts))
    assert lengths[8] >= 2
    assert lengths[30:] == [DRAFT_TOKENS_MAX] * 70


def test_a_text_that_repeats_itself_is_taken_to_go_on_so() -> None:
    (draft,) = grown([5, 6, 7] * 20, [5])
    assert draft == ([5, 6, 7] * 5)[: len(draft)]
    assert len(draft) > 3


def test_a_text_without_repetition_gets_no_drafts() -> None:
    rng = random.Random(1)
    text = [rng.randrange(50_000) for _ in range(3000)]
    assert not any(grown(text[:1500], text[1500:]))


@pytest.mark.parametrize("length", [2, 3, 5, 9])
def test_drafted_tokens_are_right_as_often_as_was_asked(length: int) -> None:
    rng = random.Random(length)
    # Words in any order: a word goes on as it did before, and what follows it is hardly ever known.
    words = [[length * word + at for at in range(length)] for word in range(40)]
    text = [token for _ in range(3000 // length) for token in rng.choice(words)]
    drafts = list(enumerate(grown(text[:300], text[300:]), 300))
    first = [draft[0] == text[place] for place, draft in drafts if draft]
    assert sum(first) >= 0.5 * len(first)
    assert (len(first) > 0.2 * len(drafts)) == (length > 2)


def test_odds_fall_along_a_draft_and_none_is_below_what_was_asked() -> None:
    drafter = Drafter()
    drafted = drafter.draft([*SOURCE, *SOURCE[:RUN_MAX]], 99, odds_min=0.2)
    odds = [odds for _, odds in drafted]
    assert odds == sorted(odds, reverse=True)
    assert odds[-1] >= 0.2
    assert len(drafter.draft([*SOURCE, *SOURCE[:RUN_MAX]], 2, odds_min=0.2)) == 2
