"""What `capanode start` prints, and to whom."""

import errno
import io
import os
import sys

import pytest
from structlog.testing import capture_logs

from capanode.cli.screen import JsonLines, Screen
from capanode.milestones import draining


class Broken(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.parametrize("screen", [Screen(on_terminal=False), JsonLines()])
def test_a_reader_that_goes_away_does_not_end_the_node(
    screen: Screen | JsonLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken())
    with capture_logs() as logs:
        screen.milestone(draining(2))
        screen.milestone(draining(1))
        screen.close()
    assert [entry["event"] for entry in logs] == ["output_closed"]
