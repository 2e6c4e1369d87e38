"""What our programs do with errors that leave a command."""

import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import CapaError
from protocol.programs.commands import UsageError

PROGRAMS = ("capanode.cli", "coordinator.cli", "sim.cli", "contracts.cli")


@pytest.fixture(params=PROGRAMS)
def run(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[BaseException], int]:
    """Run a program whose command raises; returns its exit code."""
    program = importlib.import_module(request.param)

    def run(error: BaseException) -> int:
        def command() -> None:
            raise error

        monkeypatch.setattr(program, "app", command)
        with pytest.raises(SystemExit) as caught:
            program.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code

    return run


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    """As a nursery within a nursery raises them."""
    return ExceptionGroup("outer", [ExceptionGroup("inner", errors)])


def test_an_error_is_a_sentence_and_an_exit_code(
    run: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(CapaError("the disk is full: free some space")) == 1
    assert capsys.readouterr().err.strip() == "error: the disk is full: free some space"


def test_errors_of_tasks_are_told_once_each(
    run: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(group(CapaError("one"), CapaError("two"), CapaError("one"))) == 1
    assert capsys.readouterr().err.strip() == "error: one; two"


def test_what_cannot_be_meant_is_wrong_usage(
    run: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(UsageError("'x' is not a peer id")) == 2
    assert capsys.readouterr().err.strip() == "error: 'x' is not a peer id"
    assert run(group(UsageError("one"), CapaError("two"))) == 1


def test_an_argument_that_is_no_text_is_wrong_usage(
    run: Callable[[BaseException], int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "submit", os.fsdecode(b"\xff")])
    assert run(AssertionError("the command must not run")) == 2
    assert capsys.readouterr().err.strip() == "error: an argument is not UTF-8 text"


def test_a_file_that_cannot_be_used_is_named(
    run: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(PermissionError(errno.EACCES, "Permission denied", "/etc/capanode")) == 1
    assert capsys.readouterr().err.startswith("error: /etc/capanode: Permission denied: choose")


@pytest.mark.parametrize(
    ("number", "told"), [(errno.EPIPE, ""), (errno.ENOSPC, "error: cannot write: No space left")]
)
def test_an_output_that_takes_no_more_is_no_bug(
    run: Callable[[BaseException], int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    told: str,
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert run(group(OSError(number, os.strerror(number)))) == 1
    said = capsys.readouterr().err
    assert said.startswith(told)
    assert bool(said) == bool(told)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">/dev/full"])
def test_a_command_copes_with_streams_that_are_closed_or_full(closed: str, tmp_path: Path) -> None:
    program = f"{sys.executable} -m coordinator"
    ran = subprocess.run(
        ["/bin/sh", "-c", f"{program} submit m --data-dir {tmp_path} {closed}"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode == 1
    assert ran.stderr.strip() in ("", "error: the input is empty")
    ran = subprocess.run(
        ["/bin/sh", "-c", f"{program} config show --data-dir {tmp_path} {closed}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in ran.stderr


def test_a_system_call_that_fails_for_no_file_is_a_bug(
    run: Callable[[BaseException], int],
) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run(group(OSError(errno.EBADF, "Bad file descriptor")))
    assert caught.group_contains(OSError, match="Bad file")


@pytest.mark.parametrize("nested", [False, True])
def test_an_interrupt_is_no_error(
    run: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str], nested: bool
) -> None:
    interrupt = KeyboardInterrupt()
    assert run(BaseExceptionGroup("", [interrupt]) if nested else interrupt) == 130
    assert capsys.readouterr().err == ""


def test_a_bug_keeps_its_traceback(run: Callable[[BaseException], int]) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run(group(ZeroDivisionError("a bug")))
    assert caught.group_contains(ZeroDivisionError)


def test_the_simulator_ends_politely_even_if_its_shell_ignores_interrupts() -> None:
    """A shell that starts a program in the background does; its network would go on for ever."""
    program = (
        "import sim.cli, trio, typer\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def wait() -> None:\n"
        "    print('ready', flush=True)\n"
        "    trio.run(trio.sleep_forever)\n"
        "sim.cli.app = app\n"
        "sim.cli.main()\n"
    )
    command = [sys.executable, "-c", program]
    shell = (
        "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"os.execv({sys.executable!r}, {command!r})"
    )
    with subprocess.Popen([sys.executable, "-c", shell], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(timeout=30) == 130


def test_a_part_that_was_not_installed_is_named(
    run: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ModuleNotFoundError("No module named 'torch'", name="torch")) == 1
    told = capsys.readouterr().err
    assert "needs torch" in told
    assert "capacloud[" in told
    with pytest.raises(BaseExceptionGroup):
        run_bug(run)


def run_bug(run: Callable[[BaseException], int]) -> None:
    """A module of ours that is missing is no part that could be installed."""
    run(ModuleNotFoundError("No module named 'coordinator.typo'", name="coordinator.typo"))
