"""The node as a process: its folder, key, machine and signals around `capanode.node`.

The first SIGINT or SIGTERM drains, a second one stops at once. Either way no receipt is lost.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import structlog
import trio

from capanode.benchmark import SpeedCache
from capanode.config import NodeConfig
from capanode.errors import IsolationError, NodeError
from capanode.hardware import hardware_of, probe_machine
from capanode.hourly_rates import HourlyRates
from capanode.milestones import Milestone, OnMilestone
from capanode.models.store import ModelStore
from capanode.node import Node, NodeRules
from capanode.outbox_store import OutboxStore
from capanode.ports import PortError, check_port
from capanode.sandbox.probe import IsolationReport, probe_isolation
from capanode.status import NodeStatus, StatusServer, read_status
from capanode.workers import SandboxedWorkers, plan_models
from protocol.offers import Hardware
from protocol.programs.gc import settle_garbage_collection
from protocol.programs.keyfile import load_key_file
from protocol.programs.locks import hold_lock
from protocol.programs.runtime import system_runtime
from protocol.programs.shutdown import StopSignals, run_until_signal

log = structlog.get_logger(__name__)

STATUS_EVERY_S = 1.0

OnStatus = Callable[[NodeStatus], None]


async def serve(
    config: NodeConfig,
    *,
    software: str,
    on_milestone: OnMilestone,
    on_status: OnStatus | None = None,
) -> None:
    """Run a node until it is told to stop. Raises CapaError of many kinds, each with advice.

    Must run on the main thread: workers die with the thread that started them.
    """
    with _hold_data_dir(config):
        key = load_key_file(config.key_path)
        for place in config.listen:
            _require_port(place)
        machine = probe_machine()
        hardware = hardware_of(machine)
        report = require_isolation(probe_isolation(), on_milestone)
        assert report.sandbox is not None
        models = ModelStore(config.model_store)
        plans = plan_models(
            config.models,
            models,
            machine,
            gpu=hardware.kind == "cuda",
            allow_code=config.allow_code_models,
        )
        runtime = system_runtime()
        # libp2p alone takes 45 MB: only the running node loads it.
        from protocol.net.libp2p import Libp2pTransport  # noqa: PLC0415

        store = OutboxStore(config.outbox_path)
        try:
            node = Node(
                key,
                Libp2pTransport(
                    key, config.listen, announce=config.announce, policy=config.dial_policy
                ),
                SandboxedWorkers(
                    report.sandbox, hardware, rng=runtime.child_rng(), nice=config.worker_nice
                ),
                plans,
                _rules(config, report, hardware, software),
                store=store,
                speeds=SpeedCache(config.benchmarks_path),
                runtime=runtime,
                on_milestone=on_milestone,
            )
            await run_until_signal(partial(_run, node, config, on_status))
        finally:
            store.close()


async def _run(
    node: Node, config: NodeConfig, on_status: OnStatus | None, signals: StopSignals
) -> None:
    """Serve until the node has ended in good order; its status is served meanwhile."""
    async with trio.open_nursery() as nursery:

        async def live(*, task_status: trio.TaskStatus[None]) -> None:
            await node.run(task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(live)
        signals.is_up = True
        settle_garbage_collection()
        server = StatusServer(node, config.status_socket)
        await nursery.start(server.run)
        if on_status is not None:
            nursery.start_soon(_show_forever, node, server, on_status)
        await signals.asked.wait()
        node.stop()


async def _show_forever(node: Node, server: StatusServer, on_status: OnStatus) -> None:
    while True:
        on_status(await read_status(node, server.rates))
        await trio.sleep(STATUS_EVERY_S)


def _require_port(place: str) -> None:
    try:
        check_port(place)
    except PortError as error:
        raise NodeError(f"{error}: {error.advice}") from None


def require_isolation(report: IsolationReport, on_milestone: OnMilestone) -> IsolationReport:
    """Without a sandbox this machine must not run what strangers send."""
    if report.sandbox is None:
        raise IsolationError(
            "this machine cannot confine other people's jobs, so it takes none: "
            + "; ".join(report.advice)
        )
    tier = report.tier.value
    words = f"isolation: {tier}, shown by a self-test that tried to break out"
    on_milestone(Milestone("isolation", words, {"tier": tier}))
    return report


def _rules(
    config: NodeConfig, report: IsolationReport, hardware: Hardware, software: str
) -> NodeRules:
    return NodeRules(
        coordinators=config.coordinators,
        isolation=report.tier,
        hardware=hardware,
        software=software,
        region=config.region,
        data_collection=config.data_collection,
        queue_max=config.queue_max,
        per_client_max=config.per_client_max,
        rates=HourlyRates(config.price_cpu_core_hour, config.price_gpu_gib_hour),
        batch_percent=config.batch_percent,
        drain_s=config.drain_s,
    )


def _hold_data_dir(config: NodeConfig) -> AbstractContextManager[None]:
    """One node per data directory: two would share a key, and each would spoil the other's
    offers."""
    if not config.data_dir.is_dir():
        # The key's error says what to do; a lock file must not make the folder look set up.
        load_key_file(config.key_path)
    refusal = (
        f"another node runs with data directory {config.data_dir}: stop it, or use another "
        "--data-dir"
    )
    return hold_lock(config.lock_path, refusal=refusal)
