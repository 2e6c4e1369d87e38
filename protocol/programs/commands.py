"""How a command of ours ends: in a sentence and an exit code, whatever task it came from."""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from protocol.errors import CapaError, leaves


class UsageError(CapaError):
    """What was typed or set cannot be meant: doing it again will not help. Programs exit with 2."""


def run_command(command: Callable[[], object], complain: Callable[[str], None]) -> NoReturn:
    """Run a program's command line, then exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Errors of ours are told by `complain`, each once, and so is a file, a folder or an output that
    the system does not let us use; a bug keeps its traceback. Typer exits with 2 by itself.
    """
    code = 0
    _open_missing_streams()
    try:
        _check_arguments(sys.argv[1:])
        command()
    except* CapaError as group:
        errors = list(leaves(group))
        complain(_sentence(map(str, errors)))
        code = 2 if all(isinstance(error, UsageError) for error in errors) else 1
    except* OSError as group:
        _, bugs = group.split(_is_no_bug)
        if bugs is not None:
            raise bugs from None
        troubles = list(map(_trouble, leaves(group)))
        if any(troubles):
            complain(_sentence(filter(None, troubles)))
        code = 1
    except* KeyboardInterrupt:
        code = 130
    # Not in there: what leaves an `except*` is put into a group, which ends in a traceback.
    sys.exit(code)


def drop_stdout() -> None:
    """For an output that takes no more: what is still in its buffer would fail once more when the
    interpreter ends."""
    sys.stdout = _Nowhere()


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


def _check_arguments(arguments: Iterable[str]) -> None:
    """Names, prompts and paths go into messages and JSON, which carry UTF-8 only."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError("an argument is not UTF-8 text") from None


def _sentence(told: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(told))


def _open_missing_streams() -> None:
    """Python has no stream for a descriptor that was closed before we started."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # as long as the process


# What writing to stdout fails with; sockets have errors of their own (`protocol.net.errors`).
_OUTPUT_ERRNOS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO)


def _is_no_bug(error: BaseException) -> bool:
    is_output = isinstance(error, OSError) and error.errno in _OUTPUT_ERRNOS
    return is_output or (isinstance(error, OSError) and error.filename is not None)


def _trouble(error: BaseException) -> str | None:
    """None for a reader of our output that has seen enough, such as `head`."""
    assert isinstance(error, OSError)
    if error.filename is None:
        drop_stdout()
        return None if error.errno == errno.EPIPE else f"cannot write: {error.strerror}"
    return f"{error.filename}: {error.strerror}: choose another place, or see to its permissions"
