"""What commands print for people."""

import io
import re
import sys

import pytest

from protocol.programs.output import print_table

# As long as the names of an account and a key may be, side by side.
ROW = ("a" * 128, "b" * 128, "c" * 64)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_row_is_one_line_where_programs_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "key", "digest"), [ROW])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "a" * 20 in line)
    assert line.split() == list(ROW)


def test_a_narrow_terminal_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    print_table(("name", "key", "digest"), [ROW])
    shown = terminal.getvalue()
    assert "a" * 60 not in shown
    for cell in ROW:
        assert sum(map(len, re.findall(f"{cell[0]}{{2,}}", shown))) >= len(cell) - 1
