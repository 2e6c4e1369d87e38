"""How a command of ours ends: in a sentence and an exit code, whatever task it came from."""

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from protocol.errors import CapaError, leaves


class UsageError(CapaError):
    """What was typed or set cannot be meant: doing it again will not help. Programs exit with 2."""


def run_command(command: Callable[..., object], complain: Callable[[str], None]) -> NoReturn:
    """Run a program's command line, then exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Errors of ours are told by `complain`, each once, and so is a file, a folder or an output that
    the system does not let us use; a bug keeps its traceback. Typer exits with 2 by itself. With
    `--json`, what is told is one JSON object on stderr: stdout has data only.
    """
    code = 0
    _open_missing_streams()
    as_json = wants_json(sys.argv[1:])
    tell = tell_json if as_json else complain
    try:
        _check_arguments(sys.argv[1:])
        code = _call(command, as_json)
    except* CapaError as group:
        errors = list(leaves(group))
        if as_json:
            tell_json(_sentence(map(str, errors)), code=_code_of(errors))
        else:
            complain(_sentence(map(str, errors)))
        code = 2 if all(isinstance(error, UsageError) for error in errors) else 1
    except* OSError as group:
        _, bugs = group.split(_is_no_bug)
        if bugs is not None:
            raise bugs from None
        troubles = list(map(_trouble, leaves(group)))
        if any(troubles):
            tell(_sentence(filter(None, troubles)))
        code = 1
    except* ModuleNotFoundError as group:
        missing = [error for error in leaves(group) if isinstance(error, ModuleNotFoundError)]
        if any(_is_ours(error) for error in missing):
            raise
        tell(_sentence(map(_missing, missing)))
        code = 1
    except* KeyboardInterrupt:
        code = 130
    # Not in there: what leaves an `except*` is put into a group, which ends in a traceback.
    sys.exit(code)


def wants_json(arguments: Sequence[str]) -> bool:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def tell_json(message: str, *, code: str = "failed") -> None:
    """For programs: an error as they read it, one line on stderr."""
    told = {"error": {"code": code, "message": message}}
    print(json.dumps(told, ensure_ascii=False), file=sys.stderr)


def _call(command: Callable[..., object], as_json: bool) -> int:
    """Returns the exit code. Raises UsageError for what Typer would have told in its own words."""
    if not as_json:
        command()
        return 0
    # Settings are read in programs that have no command line of their own.
    from typer import Abort  # noqa: PLC0415

    try:
        code = command(standalone_mode=False)
    except Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # The base class of what Typer tells has no public name.
        told = getattr(error, "format_message", None)
        if told is not None:
            raise UsageError(told()) from None
        raise
    return code if isinstance(code, int) else 0


def _code_of(errors: Sequence[BaseException]) -> str:
    """The wire code of the first error that has one."""
    if all(isinstance(error, UsageError) for error in errors):
        return "usage"
    codes = [code for error in errors if (code := getattr(error, "code", None))]
    return str(codes[0]) if codes else "failed"


def _is_ours(error: ModuleNotFoundError) -> bool:
    return (error.name or "").partition(".")[0] in {"capanode", "contracts", "coordinator", "sim"}


def _missing(error: ModuleNotFoundError) -> str:
    """A part of the product that was not installed: see pyproject.toml."""
    return (
        f"this needs {error.name}, which is not installed: add the part that it belongs to, with "
        "`pip install 'capacloud[gateway]'`, [market] or [node], or [all] of them"
    )


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
