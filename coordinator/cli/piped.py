"""What a job is given: an argument, a file, what is piped in, or an argument and a pipe."""

import os
import stat
import sys
import threading
from pathlib import Path

from coordinator.cli.options import CommandError
from protocol.limits import PAYLOAD_BYTES_MAX
from protocol.programs.commands import UsageError
from protocol.programs.output import say

# A producer that is slower than this may as well be none: its user wants to know what we wait for.
_SAY_AFTER_S = 2.0


def read_content(prompt: str | None, file: Path | None) -> bytes:
    """A prompt with what is piped in below it, as `submit MODEL "Summarize this:" < page.txt`
    means it. Raises UsageError, CommandError."""
    if prompt is not None and file is not None:
        raise UsageError("give either a prompt or --input")
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty")
    if prompt is None and file is None and sys.stdin.isatty():
        raise UsageError("give a prompt, --input FILE, or pipe the input in")
    if prompt is None:
        content = _read_file(file)
        if not content:
            raise CommandError("the input is empty")
    else:
        piped = _read_pipe()
        content = prompt.encode() + (b"\n\n" + piped if piped.strip() else b"")
    if len(content) > PAYLOAD_BYTES_MAX:
        raise CommandError(f"the input has more than the {PAYLOAD_BYTES_MAX:,} bytes that can go")
    return content


def _read_pipe() -> bytes:
    """Nothing from a terminal, from /dev/null or from where no input can come."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return b""
    if not stat.S_ISFIFO(mode) and not stat.S_ISREG(mode):
        return b""
    return _read_stdin()


def _read_file(file: Path | None) -> bytes:
    try:
        if file is None or str(file) == "-":
            return _read_stdin()
        with file.open("rb") as opened:
            return opened.read(PAYLOAD_BYTES_MAX + 1)
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from None


def _read_stdin() -> bytes:
    """Bounded: a pipe may have no end."""
    timer = threading.Timer(
        _SAY_AFTER_S, say, ["waiting for the piped input to end; `< /dev/null` gives none"]
    )
    timer.daemon = True
    timer.start()
    try:
        return sys.stdin.buffer.read(PAYLOAD_BYTES_MAX + 1)
    finally:
        timer.cancel()
