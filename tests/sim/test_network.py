import subprocess
from typing import Any

import pytest

from sim.network import NetworkError, run_command


def answer(monkeypatch: pytest.MonkeyPatch, returncode: int) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, returncode, "printed", "error: no such thing\n")

    monkeypatch.setattr(subprocess, "run", run)


def test_a_command_that_fails_is_told_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, 1)
    with pytest.raises(NetworkError, match="coordinator nodes` failed: error: no such thing"):
        run_command("coordinator", "nodes")


@pytest.mark.parametrize("returncode", [130, -2])
def test_an_interrupted_command_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, returncode: int
) -> None:
    answer(monkeypatch, returncode)
    with pytest.raises(KeyboardInterrupt):
        run_command("coordinator", "nodes")
