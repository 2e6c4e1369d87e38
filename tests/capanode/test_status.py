import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
import trio.lowlevel
import trio.testing

from capanode.benchmark import SpeedCache
from capanode.cli.screen import status_line
from capanode.errors import NotRunningError, OwnerCommandError, PauseError, SocketError
from capanode.node import Node, NodeRules
from capanode.outbox_store import OutboxStore
from capanode.owner_commands import OwnerCommands
from capanode.pauses import OwnerPause, PauseReason
from capanode.status import Rates, StatusServer, read_status
from capanode.status_socket import ask_node, ask_status
from capanode.worker.jobs import WorkerExit, WorkerState
from protocol.errors import Code
from protocol.messages import IsolationTier
from protocol.net.clock import VirtualClock
from protocol.net.memory import MemoryNetwork
from protocol.programs.runners import InlineRunner
from protocol.programs.runtime import Runtime
from tests.capanode.fakes import HARDWARE, FakeWorker, make_manifest, make_model
from tests.protocol.makers import NODE


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """Not running: status only looks."""
    store = OutboxStore(None)
    rules = NodeRules((), IsolationTier.BWRAP, HARDWARE, "capanode/test", region="eu")
    rng = Random(1)
    node = Node(
        NODE,
        MemoryNetwork(rng).transport(NODE),
        None,  # type: ignore[arg-type]  # no workers are made here
        (),
        rules,
        store=store,
        speeds=SpeedCache(None),
        runtime=Runtime(VirtualClock(), rng.randbytes, rng, InlineRunner()),
    )
    model = make_model(make_manifest(), FakeWorker())
    node.models[model.digest] = model
    yield node
    store.close()


def make_commands(node: Node, folder: Path) -> OwnerCommands:
    pause = OwnerPause(node.pauses, folder / "paused")
    return OwnerCommands(node, pause, reload=lambda: {"applied": ["queue_max"], "at_restart": []})


@asynccontextmanager
async def serving(node: Node, path: Path) -> AsyncIterator[StatusServer]:
    server = StatusServer(node, path, make_commands(node, path.parent))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


async def test_the_socket_tells_the_operator_and_nobody_else(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    async with serving(node, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        plain = await trio.to_thread.run_sync(ask_status, path)
    assert plain["peer_id"] == NODE.peer_id
    assert plain["models"][0]["name"] == "a-model"
    assert plain["warnings"] == ["no coordinator is listed, so no job can come: set `coordinators`"]
    assert NODE.seed().hex() not in json.dumps(plain)
    assert not path.exists()


async def test_a_socket_that_an_earlier_process_left_is_replaced(
    node: Node, tmp_path: Path
) -> None:
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(NotRunningError, match="capanode start"):
        ask_status(path)
    async with serving(node, path):
        assert await trio.to_thread.run_sync(ask_status, path)


async def test_a_deep_data_directory_has_a_socket_too(node: Node, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a-rather-long-name"] * 8)
    folder.mkdir(parents=True)
    async with serving(node, folder / "status.sock"):
        plain = await trio.to_thread.run_sync(ask_status, folder / "status.sock")
    assert plain["peer_id"] == NODE.peer_id


async def test_a_socket_that_cannot_be_made_is_an_error_with_its_path(
    node: Node, tmp_path: Path
) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(SocketError, match="missing"), flatten_subgroups=True):
        async with serving(node, tmp_path / "missing" / "status.sock"):
            pass


async def test_a_client_that_does_not_read_is_dropped_without_harm(
    node: Node, tmp_path: Path
) -> None:
    path = tmp_path / "status.sock"
    async with serving(node, path):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(str(path))
            await trio.lowlevel.checkpoint()
        assert await trio.to_thread.run_sync(ask_status, path)


@pytest.mark.parametrize("answer", [b"", b"{", b"x" * 5_000_000])
async def test_what_is_no_node_is_not_mistaken_for_one(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    connection.sendall(answer)
                except BrokenPipeError:
                    return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.to_thread.run_sync, answer_once))
            with pytest.raises(NotRunningError):
                await trio.to_thread.run_sync(ask_status, path)


async def ask(path: Path, command: str, **arguments: object) -> dict[str, object]:
    return await trio.to_thread.run_sync(partial(ask_node, path, command, **arguments))


async def test_the_owner_pauses_and_resumes_and_a_restart_remembers(
    node: Node, tmp_path: Path
) -> None:
    path = tmp_path / "status.sock"
    async with serving(node, path):
        assert "owner" in str((await ask(path, "pause"))["paused"])
        assert node.load().draining
        assert "owner" in (await trio.to_thread.run_sync(ask_status, path))["paused"]
        node.pauses.clear(PauseReason.OWNER)
        OwnerPause(node.pauses, tmp_path / "paused")
        assert node.pauses.is_paused, "as the next process finds it"
        assert (await ask(path, "resume"))["paused"] == ""
        assert not node.load().draining
        OwnerPause(node.pauses, tmp_path / "paused")
        assert not node.pauses.is_paused


async def test_a_pause_that_cannot_be_noted_is_refused(node: Node, tmp_path: Path) -> None:
    with pytest.raises(PauseError, match="cannot note"):
        OwnerPause(node.pauses, tmp_path / "missing" / "paused").pause()
    assert not node.pauses.is_paused


async def test_the_owner_has_the_models_measured_again(node: Node, tmp_path: Path) -> None:
    (model,) = node.models.values()
    speed = model.speed
    path = tmp_path / "status.sock"
    async with serving(node, path):
        assert (await ask(path, "measure"))["running"] == 0
    assert not node.is_speed_settled(model)
    assert model.speed == speed, "until there is a new measurement"


async def test_the_owner_drains_and_reloads_through_the_socket(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    async with serving(node, path):
        assert (await ask(path, "reload"))["applied"] == ["queue_max"]
        assert not node.is_drained_for_good
        assert (await ask(path, "drain", within_s=7))["draining"] is True
        assert (await trio.to_thread.run_sync(ask_status, path))["draining"] is True


@pytest.mark.parametrize("within_s", [-1, 3_601, "soon", None, True])
async def test_what_a_node_is_not_told_in_order_is_refused_with_a_reason(
    node: Node, tmp_path: Path, within_s: object
) -> None:
    path = tmp_path / "status.sock"
    async with serving(node, path):
        with pytest.raises(OwnerCommandError, match="seconds"):
            await ask(path, "drain", within_s=within_s)
        with pytest.raises(OwnerCommandError, match="knows no command"):
            await ask(path, "dance")
        assert not node.is_stopping


@pytest.mark.parametrize("asked", [b"", b"nonsense\n", b"[]\n", b'{"do": 3}\n', b"x" * 4_000])
async def test_a_program_that_asks_nonsense_gets_an_answer(
    node: Node, tmp_path: Path, asked: bytes
) -> None:
    path = tmp_path / "status.sock"
    async with serving(node, path):
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(asked)
            await stream.send_eof()
            heard = b"".join([piece async for piece in stream])
        assert ("error" in json.loads(heard)) == bool(asked)


async def test_rates_are_those_of_the_last_seconds(
    node: Node, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    server = StatusServer(node, tmp_path / "unused", make_commands(node, tmp_path))
    (model,) = node.models.values()
    for _ in range(30):
        server.rates.sample()
        await trio.sleep(1)
        model.output_tokens_done += 50
    server.rates.sample()
    assert server.rates.tokens_per_s(model.digest) == pytest.approx(50.0)
    line = status_line(await read_status(node, server.rates))
    assert "0/2 running" in line
    assert "50 tokens/s" in line
    assert "no coordinator" in line


async def test_the_operator_sees_why_a_worker_ended(node: Node) -> None:
    (model,) = node.models.values()
    worker = model.worker
    assert isinstance(worker, FakeWorker)
    worker.last_ending = WorkerExit(Code.OUT_OF_MEMORY, "it ran out of memory")
    worker.state = WorkerState.RESTARTING
    status = await read_status(node, Rates(node))
    assert status.models[0].last_ending == "it ran out of memory"
    assert "a-model is being started again: it ran out of memory" in status.warnings
    worker.state = WorkerState.UNAVAILABLE
    status = await read_status(node, Rates(node))
    assert "the last time: it ran out of memory" in status_line(status)
