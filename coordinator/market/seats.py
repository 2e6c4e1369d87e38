"""Earned capacity: how many jobs a node may have at once, by what it has answered.

A claim of a thousand slots costs nothing, so claims are only a ceiling. A node starts with a few
seats and earns one with each answer, as TCP's slow start does (RFC 5681); a failure halves them. An
answer counts for less where its client has paid for many there, because a record must cost what it
is worth; but not one that the node gave while half of its seats were taken: to have answered so
many at once is the capacity itself, and costs its forger as many jobs (RFC 7661 §4.2).
"""

SEATS_AT_START = 4.0
SEATS_MIN = 1.0
# Beyond every machine of today; keeps the number finite.
SEATS_MAX = 4_096.0
# A busy node is asked for less at once, but is not taken for a broken one.
_KEPT_AFTER_REFUSAL = 0.8


def is_used(seats: float, at_once: int) -> bool:
    """Whether a node that had so many jobs at once has used what it has earned."""
    return 2 * at_once >= seats


def after_answer(seats: float, weight: float) -> float:
    return min(seats + weight, SEATS_MAX)


def after_failure(seats: float) -> float:
    return max(seats / 2, SEATS_MIN)


def after_refusal(seats: float) -> float:
    return max(seats * _KEPT_AFTER_REFUSAL, SEATS_MIN)
