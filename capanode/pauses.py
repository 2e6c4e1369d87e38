"""Why a node takes no jobs for now, although it could: its owner, the clock, or the machine.

A paused node finishes what runs, offers nothing, and is back as soon as the last reason has gone.
"""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from capanode.errors import PauseError

_PRIVATE_FILE = 0o600


class PauseReason(StrEnum):
    """Each comes and goes by itself."""

    OWNER = "owner"
    SCHEDULE = "schedule"
    OTHER_PROGRAMS = "other_programs"
    HEAT = "heat"


class Pauses:
    """The reasons that hold now. `on_change` hears when the node is paused, and when it is back."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._words: dict[PauseReason, str] = {}

    @property
    def is_paused(self) -> bool:
        return bool(self._words)

    @property
    def words(self) -> str:
        """For the owner and for clients; empty if the node takes jobs."""
        return "; ".join(self._words.values())

    def holds(self, reason: PauseReason) -> bool:
        return reason in self._words

    def set(self, reason: PauseReason, words: str) -> None:
        was_paused = self.is_paused
        self._words[reason] = words
        if not was_paused:
            self._on_change()

    def clear(self, reason: PauseReason) -> None:
        if self._words.pop(reason, None) is not None and not self.is_paused:
            self._on_change()


class OwnerPause:
    """`capanode pause` outlives the process: an owner who wants the machine back does not want to
    say so again after an update or a crash. It lasts until `capanode resume`."""

    def __init__(self, pauses: Pauses, path: Path) -> None:
        """Raises PauseError if the note of an earlier process cannot be read."""
        self._pauses = pauses
        self._path = path
        try:
            is_noted = path.exists()
        except OSError as error:
            raise PauseError(f"cannot look for {path}: {error.strerror}") from error
        if is_noted:
            self._set()

    def pause(self) -> None:
        """Raises PauseError, and does not pause, if it would not outlive this process."""
        try:
            self._path.touch(mode=_PRIVATE_FILE)
        except OSError as error:
            raise PauseError(f"cannot note the pause in {self._path}: {error.strerror}") from error
        self._set()

    def resume(self) -> None:
        """Raises PauseError, and stays paused, if the next process would be paused again."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise PauseError(f"cannot remove {self._path}: {error.strerror}") from error
        self._pauses.clear(PauseReason.OWNER)

    def _set(self) -> None:
        self._pauses.set(PauseReason.OWNER, "paused by its owner (`capanode resume` ends it)")
