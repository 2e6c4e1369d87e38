"""Which of the fitting nodes come first.

Several coordinators with slightly stale loads would all pick the same best node. So near-equals are
drawn at random in pairs, and of each pair the less loaded comes first (Mitzenmacher, "The power of
two choices", 2001). Draws depend on the node ids and the seed, never on the order of rows.
"""

import random
from dataclasses import dataclass

import numpy as np

from coordinator.market.matching.job import Why
from coordinator.market.matching.score import NEAR_TIME, Scores
from coordinator.market.offers.table import Ties
from coordinator.market.standings import Bools, Floats, Ints

# New nodes get a first look at one job in fifty; whatever they do wrong costs no more than that.
EXPLORE_SHARE = 0.02
# After five jobs a node has a record of its own to be judged by.
NEW_BELOW_JOBS = 5.0
# The client pays for our curiosity, so it may not cost much.
EXPLORE_COST_MAX = 1.5

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT = np.uint64(29)


@dataclass(frozen=True, slots=True)
class Field:
    """The rows to choose from. `load` is jobs per slot, and never below the refusal rate: a node
    that refuses everything is always idle, and must not look like it."""

    scores: Scores
    load: Floats
    ties: Ties
    cost_nano: Floats
    familiar: Floats


@dataclass(frozen=True, slots=True)
class Placement:
    """A row's position in the selection and how it got there."""

    position: int
    why: Why


def rank(field: Field, among: Ints, *, rng: random.Random, limit: int) -> list[Placement]:
    """The best `limit` of the rows `among`: near-equals in pairs, then the others by score."""
    if not len(among) or limit <= 0:
        return []
    salt = rng.getrandbits(64)
    primary = field.scores.primary[among]
    near = _near_equals(field.scores, among, primary)
    places = _by_pairs(field, _drawn(field, near, salt, 2 * limit), limit)
    if len(places) < limit:
        taken = {place.position for place in places}
        rest = [p for p in _best(field, among, primary, salt, limit) if p not in taken]
        places += [Placement(p, Why.NEXT) for p in rest[: limit - len(places)]]
    return places


def explore(field: Field, among: Ints, *, rng: random.Random) -> int | None:
    """Sometimes a new node that costs little more than the best one; mostly None.

    Always draws the same amount from `rng`, so that one decision does not shift the next."""
    is_its_turn, salt = rng.random() < EXPLORE_SHARE, rng.getrandbits(64)
    if not is_its_turn or not len(among):
        return None
    best = among[int(np.argmin(field.scores.primary[among]))]
    is_new: Bools = field.familiar[among] < NEW_BELOW_JOBS
    is_new &= field.cost_nano[among] <= field.cost_nano[best] * EXPLORE_COST_MAX
    new = among[is_new]
    if not len(new):
        return None
    return int(new[int(np.argmin(_shuffled(field.ties[new], salt)))])


def _near_equals(scores: Scores, among: Ints, primary: Floats) -> Ints:
    """Those that nothing but load should tell apart. `primary` are the scores of `among`."""
    near: Ints = among[primary <= primary.min() * scores.near]
    if scores.secondary is None or len(near) == 1:
        return near
    secondary = scores.secondary[near]
    nearest: Ints = near[secondary <= secondary.min() * NEAR_TIME]
    return nearest


def _drawn(field: Field, near: Ints, salt: int, count: int) -> list[int]:
    """`count` of these rows at random, in random order."""
    keys = _shuffled(field.ties[near], salt)
    if len(near) > count:
        lowest = np.argpartition(keys, count - 1)[:count]
        near, keys = near[lowest], keys[lowest]
    drawn: list[int] = near[np.argsort(keys)].tolist()
    return drawn


def _by_pairs(field: Field, positions: list[int], limit: int) -> list[Placement]:
    if len(positions) == 1:
        return [Placement(positions[0], Why.BEST)]
    winners, losers = [], []
    for first, second in zip(positions[::2], positions[1::2], strict=False):
        is_swapped = field.load[second] < field.load[first]
        winners.append(second if is_swapped else first)
        losers.append(first if is_swapped else second)
    if len(positions) % 2:
        losers.append(positions[-1])
    places = [Placement(p, Why.LESS_LOADED) for p in winners]
    places += [Placement(p, Why.NEAR_EQUAL) for p in losers]
    return places[:limit]


def _best(field: Field, among: Ints, primary: Floats, salt: int, count: int) -> list[int]:
    """The `count` rows of lowest score, lowest first; equals in random order."""
    if len(among) > count:
        bound = np.partition(primary, count - 1)[count - 1]
        pool = primary <= bound
        among, primary = among[pool], primary[pool]
    order = np.lexsort((_shuffled(field.ties[among], salt), primary))
    best: list[int] = among[order[:count]].tolist()
    return best


def _shuffled(ties: Ties, salt: int) -> Ties:
    """A random key per node: the node's own number, mixed with a salt by the finalizer of
    SplitMix64, which maps distinct numbers to distinct keys."""
    mixed = ties ^ np.uint64(salt)
    mixed *= _MIX_1
    mixed ^= mixed >> _SHIFT
    mixed *= _MIX_2
    mixed ^= mixed >> _SHIFT
    return mixed
