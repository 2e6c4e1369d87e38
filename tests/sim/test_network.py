import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from sim.demo import demo_plans
from sim.network import LocalNode, NetworkError, open_network, run_command
from sim.processes import ChildProcess, ProcessFailed


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


def dying_node(folder: Path) -> LocalNode:
    """A process that ends by itself with code 1."""
    process = ChildProcess("node-1", "json.tool", ["/nothing"], log_path=folder / "log")
    return LocalNode(demo_plans(1)[0], folder, process, "peer")


async def test_a_market_goes_on_without_a_node_that_died(tmp_path: Path) -> None:
    lost, told = trio.open_memory_channel[ProcessFailed](1)
    async with open_network(tmp_path, tmp_path, on_node_lost=lost.send_nowait) as network:
        await network.restart_node(dying_node(tmp_path))
        with trio.fail_after(30):
            assert "node-1 ended with code" in str(await told.receive())


async def test_a_node_that_dies_ends_a_network_that_needs_all_of_them(tmp_path: Path) -> None:
    with pytest.RaisesGroup(ProcessFailed, flatten_subgroups=True):
        async with open_network(tmp_path, tmp_path) as network:
            await network.restart_node(dying_node(tmp_path))
            await trio.sleep(30)
