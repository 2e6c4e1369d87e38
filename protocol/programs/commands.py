"""How a command of ours ends: in a sentence and an exit code, whatever task it came from."""

import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from protocol.errors import CapaError, leaves


class UsageError(CapaError):
    """What was typed or set cannot be meant: doing it again will not help. Programs exit with 2."""


def run_command(command: Callable[[], object], complain: Callable[[str], None]) -> NoReturn:
    """Run a program's command line, then exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Errors of ours are told by `complain`, each once, and so is a file or folder that the system
    does not let us use; a bug keeps its traceback. Typer exits with 2 by itself.
    """
    code = 0
    try:
        command()
    except* CapaError as group:
        errors = list(leaves(group))
        complain(_sentence(map(str, errors)))
        code = 2 if all(isinstance(error, UsageError) for error in errors) else 1
    except* OSError as group:
        files, bugs = group.split(_names_a_file)
        if bugs is not None:
            raise bugs from None
        assert files is not None, "a group has errors of one kind or the other"
        complain(_sentence(map(_file_trouble, leaves(files))))
        code = 1
    except* KeyboardInterrupt:
        code = 130
    # Not in there: what leaves an `except*` is put into a group, which ends in a traceback.
    sys.exit(code)


def _sentence(told: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(told))


def _names_a_file(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.filename is not None


def _file_trouble(error: BaseException) -> str:
    assert isinstance(error, OSError)
    return f"{error.filename}: {error.strerror}: choose another place, or see to its permissions"
