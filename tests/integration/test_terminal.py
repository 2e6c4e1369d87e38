"""Buying at a terminal, as a person does it: keys, pipes, mistakes."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.conftest import RunningMarket
from tests.integration.test_market import CHAT, EMBEDDING, IMAGE

pytestmark = [pytest.mark.models, pytest.mark.slow]

WITHIN_S = 60
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
CAPACLOUD = [sys.executable, "-c", "from coordinator.__main__ import buy; buy()"]
# What readline and the waiting line move the cursor with.
_MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x07|\r")


class Terminal:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, command: list[str], columns: int = 80) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env=os.environ | {"TERM": "xterm", "COLUMNS": str(columns), "PYTHONWARNINGS": "ignore"},
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait(self, pattern: str) -> str:
        """What is shown from here until it matches; the rest is for the next call."""
        deadline_s = time.monotonic() + WITHIN_S
        while (found := re.search(pattern, self.shown)) is None:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"{pattern!r} is not in {self.shown!r}"
            if not select.select([self._ours], [], [], left_s)[0]:
                continue
            try:
                self.shown += _MOVES.sub("", os.read(self._ours, 65_536).decode(errors="replace"))
            except OSError:
                raise AssertionError(f"{pattern!r} is not in {self.shown!r}") from None
        shown, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return shown

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it showed last."""
        with suppress(OSError):
            while data := os.read(self._ours, 65_536):
                self.shown += _MOVES.sub("", data.decode(errors="replace"))
        return self.process.wait(WITHIN_S), self.shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def _take_terminal() -> None:
    """So that Ctrl-C is a signal to the program."""
    import fcntl  # noqa: PLC0415
    import termios  # noqa: PLC0415

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def terminal(market: RunningMarket, *arguments: str, columns: int = 80) -> Iterator[Terminal]:
    command = [sys.executable, "-m", "coordinator", *arguments, f"--data-dir={market.data_dir}"]
    running = Terminal(command, columns)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(autouse=True, scope="module")
def account(market: RunningMarket) -> str:
    """That of the key that commands buy with."""
    buyer = market.command("whoami").strip()
    market.try_command("accounts", "create", "terminal", f"--peer-id={buyer}", "--credit=1")
    return buyer


def test_a_conversation(market: RunningMarket, account: str) -> None:
    with terminal(market, "chat", CHAT, "--max-tokens=400", "--temperature=0") as chat:
        chat.wait("Talking to .*\n")
        chat.wait("you> ")
        chat.type("/help\n")
        assert "/exit" in chat.wait("you> ")
        chat.type("/nonsense\n")
        assert "no command /nonsense" in chat.wait("you> ")
        chat.type("Write a long story about a fox.\n")
        chat.wait("fox.\n")
        chat.wait(r"\w+ \w+ \w+ ")
        chat.type(CTRL_C)
        assert "[stopped]" in chat.wait("you> ")
        # Half typed, and still there after a Ctrl-C that only tells how to end.
        chat.type("/re")
        chat.wait("/re")
        chat.type(CTRL_C)
        chat.wait("/exit or Ctrl-D ends")
        chat.wait("you> /re")
        chat.type("set\n")
        chat.wait("Forgotten")
        chat.wait("you> ")
        # The line before the last one, changed by hand.
        chat.type(UP + UP)
        chat.wait("about a fox.")
        chat.type("\x15" + "Say hello.\n")
        chat.wait(r"\[node .*credits; job \w+\]")
        chat.wait("you> ")
        chat.type(CTRL_D)
        code, shown = chat.end()
    assert code == 0, shown
    assert "Traceback" not in shown
    jobs = json.loads(market.command("jobs", "list", f"--account={account}", "--json"))
    stopped = jobs[1]["receipts"][0]
    assert 0 < stopped["output_tokens"] < 400


@pytest.mark.parametrize(
    ("model", "told"), [("no-such-model", "no node offers"), (IMAGE, "cannot chat")]
)
def test_a_bad_model_is_told_before_the_first_question(
    market: RunningMarket, model: str, told: str
) -> None:
    with terminal(market, "chat", model) as chat:
        code, shown = chat.end()
    assert code == 1
    assert told in shown
    assert "you>" not in shown


def test_a_narrow_terminal_is_readable(market: RunningMarket) -> None:
    with terminal(market, "quote", CHAT, columns=60) as quote:
        code, shown = quote.end()
    assert code == 0
    assert re.search(r"^node +…\w{8}$", shown, re.M)
    assert re.search(r"^price +[\d.]+ per M in, [\d.]+ per M out$", shown, re.M), [
        line for line in shown.splitlines() if "per" in line
    ]
    assert all(len(line) <= 78 for line in shown.splitlines())


def test_a_reader_that_has_seen_enough_is_no_error(market: RunningMarket) -> None:
    submit = f"{sys.executable} -m coordinator submit {CHAT} 'Tell a story.' --max-tokens=60"
    done = subprocess.run(
        ["bash", "-c", f"{submit} --data-dir={market.data_dir} < /dev/null | head -c 5"],
        capture_output=True,
        text=True,
        check=True,
        timeout=WITHIN_S,
    )
    assert len(done.stdout) == 5
    assert done.stderr == ""


def test_what_is_piped_in_follows_the_prompt(market: RunningMarket) -> None:
    def tokens(prompt: str, stdin: str | None) -> int:
        command = ("submit", CHAT, prompt, "--max-tokens=1", "--json")
        answer = json.loads(market.command(*command, stdin=stdin))
        return int(answer["job"]["input_tokens"])

    joined = tokens("Summarize this:", "A fox met a crow.\n" * 9)
    assert joined == tokens("Summarize this:\n\n" + "A fox met a crow.\n" * 9, "")
    assert joined > tokens("Summarize this:", "") + 30


def test_mistakes_are_told_with_their_cure(market: RunningMarket) -> None:
    image = market.try_command("submit", IMAGE, "a cat", stdin="")
    assert (image.returncode, image.stdout) == (2, "")
    assert "--input FILE" in image.stderr
    nowhere = market.try_command("quote", CHAT, "--region=moon")
    assert nowhere.returncode == 1
    assert "stands elsewhere (rack)" in nowhere.stdout
    assert "no node that offers" in nowhere.stderr
    photo = market.try_command("quote", IMAGE)
    assert "per image" in photo.stdout
    assert "For 1 image;" in photo.stderr
    plain = market.try_command("quote", CHAT, "--region=moon", "--json")
    assert json.loads(plain.stdout)["candidates"] == []
    assert json.loads(plain.stderr)["error"]["message"].startswith("no node that offers")


def wait_first_line(pid: int) -> None:
    """Until a program of ours has taken Ctrl-C over from the interpreter, which catches it while it
    starts: until then it is not ours to tell."""
    was_caught = False
    for _ in range(2_000):
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        is_caught = bool(caught >> (signal.SIGINT - 1) & 1)
        if was_caught and not is_caught:
            return
        was_caught |= is_caught
        time.sleep(0.001)


def test_ctrl_c_at_any_moment_shows_no_traceback(market: RunningMarket) -> None:
    command = [sys.executable, "-m", "coordinator", "nodes", f"--data-dir={market.data_dir}"]
    with contextlib.ExitStack() as stack:
        started = []
        for tenths in range(0, 12, 2):
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            started.append(stack.enter_context(process))
            wait_first_line(process.pid)
            time.sleep(tenths / 10)
            process.send_signal(signal.SIGINT)
        for process in started:
            _, told = process.communicate(timeout=WITHIN_S)
            assert "Traceback" not in told
            assert process.returncode in (0, 130, -signal.SIGINT)


def test_capacloud_buys_from_anywhere(market: RunningMarket, tmp_path: Path) -> None:
    def run(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [*CAPACLOUD, *arguments, f"--data-dir={tmp_path}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=WITHIN_S,
            input=stdin,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    key = json.loads(run("key", "init", "--json"))
    assert Path(key["path"]).stat().st_mode & 0o777 == 0o600
    assert run("key", "show").strip() == key["peer_id"]
    market.command("accounts", "create", "far", f"--peer-id={key['peer_id']}", "--credit=1")
    (tmp_path / "capacloud_client.toml").write_text(f'coordinators = ["{market.coordinator}"]\n')
    assert {model["name"] for model in json.loads(run("models", "--json"))} > {CHAT, EMBEDDING}
    answer = json.loads(run("submit", CHAT, "Say hello.", "--max-tokens=4", "--json"))
    assert answer["text"]
    assert json.loads(run("balance", "--json"))["available_nano"] < 10**9
