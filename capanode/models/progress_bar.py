"""Shows the progress of a pull on a console."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from capanode.models.progress import Progress


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
