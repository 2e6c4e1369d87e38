"""Shows the progress of a pull: on a console for people, as JSON lines for programs."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from capanode.models.progress import Progress

# A program that draws a bar needs no more.
_TELL_EVERY_S = 1.0


class JsonProgress:
    """A ProgressCallback that tells each step once a second, and its end."""

    def __init__(
        self,
        tell: Callable[[dict[str, Any]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._step = ""
        self._told_at_s = 0.0

    def __call__(self, progress: Progress) -> None:
        now_s = self._clock()
        is_new = progress.step != self._step
        if is_new or progress.done == progress.total or now_s - self._told_at_s >= _TELL_EVERY_S:
            self._step, self._told_at_s = progress.step, now_s
            self._tell({"step": progress.step, "done": progress.done, "total": progress.total})


class ConsoleProgress:
    """A ProgressCallback with one line per step: a moving bar on a terminal, plain text in a log.

    Use it as a context manager, so that the terminal is left as it was.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "ConsoleProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        if progress.step not in self._tasks:
            self._tasks[progress.step] = self._bar.add_task(progress.step)
            if not self._console.is_terminal:
                self._console.print(f"  {progress.step}", highlight=False, markup=False)
        self._bar.update(self._tasks[progress.step], completed=progress.done, total=progress.total)
