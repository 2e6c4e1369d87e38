"""Where a person types: lines with editing and history, and a Ctrl-C that ends an answer only.

What was typed is kept for the arrow keys until the session ends, and never on a disk.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio

from coordinator.cli.options import CommandError
from protocol.programs.output import say

PROMPT = "you> "


class Console:
    """Standard input, from a terminal or a pipe. Use `open_console`."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self._answer: trio.CancelScope | None = None
        self._is_reading = False

    async def read_line(self) -> str | None:
        """A line, or None at the end of the input. The network goes on meanwhile.

        Raises CommandError if it is not text.
        """
        self._is_reading = True
        try:
            return await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        finally:
            self._is_reading = False

    @contextmanager
    def answering(self) -> Iterator[trio.CancelScope]:
        """What Ctrl-C ends meanwhile, at a terminal."""
        with trio.CancelScope() as scope:
            self._answer = scope
            try:
                yield scope
            finally:
                self._answer = None

    def on_interrupt(self) -> bool:
        """Whether Ctrl-C has ended an answer, or was told how to end the session."""
        if not self.is_terminal:
            return False
        if self._answer is not None:
            self._answer.cancel()
            return True
        if self._is_reading:
            say("\n/exit or Ctrl-D ends.")
            _show_line_again()
            return True
        return False

    def _read(self) -> str | None:
        shows_prompt = self.is_terminal and sys.stdout.isatty()
        if self.is_terminal and not shows_prompt:
            print(PROMPT, end="", file=sys.stderr, flush=True)
        try:
            line = input(PROMPT if shows_prompt else "").strip()
            line.encode()
        except EOFError:
            return None
        # In some locales what is no text is read as surrogates, and shows when it is encoded.
        except UnicodeError:
            raise CommandError("the input is not UTF-8 text") from None
        return line


def _show_line_again() -> None:
    """The prompt and what was typed behind it, below what was said."""
    import readline

    print(PROMPT + readline.get_line_buffer(), end="", flush=True)


@contextmanager
def open_console() -> Iterator[Console]:
    """Leaves the terminal as it was, also if a line was half typed."""
    if not sys.stdin.isatty():
        yield Console(is_terminal=False)
        return
    import termios

    # Editing and history come with the import.
    with suppress(ImportError):
        import readline  # noqa: F401

    before = termios.tcgetattr(sys.stdin)
    try:
        yield Console(is_terminal=True)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
