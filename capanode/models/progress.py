"""How long steps tell that they move: one small value, handed to the command that shows it.

A callback may raise to stop the work: every step cleans up after itself, so that is how a caller
cancels a pull.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` bytes of one step; a total of None is not known yet."""

    step: str
    done: int
    total: int | None


ProgressCallback = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """For callers that do not watch."""
