"""The node as a process: its folder, key, machine and signals around `capanode.node`.

The first SIGINT or SIGTERM drains, a second one stops at once. Either way no receipt is lost.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from functools import partial

import structlog
import trio

from capanode.benchmark import SpeedCache
from capanode.config import NodeConfig, reread_config
from capanode.errors import NodeError
from capanode.jobs.server import ROLE
from capanode.live_settings import LiveSettings, live_rules
from capanode.load_cache import LoadCache
from capanode.machine_use import MachineMeter, others_cpu_s
from capanode.milestones import OnMilestone
from capanode.models.store import ModelStore
from capanode.node import Node, NodeRules
from capanode.outbox_store import OutboxStore
from capanode.owner_commands import OwnerCommands
from capanode.owner_watch import OwnerWatch
from capanode.pauses import OwnerPause
from capanode.ports import PortError, check_port
from capanode.price_keeper import PriceKeeper
from capanode.processor_fallback import ProcessorFallback
from capanode.reach.advice import virtual_network
from capanode.reach.gateway import find_mappers
from capanode.remeasure import Remeasurer
from capanode.settings import IfGpuFails
from capanode.start_plan import StartPlan, on_processor, plan_start
from capanode.status import NodeStatus, StatusServer, read_status
from capanode.update_notice import UpdateWatch
from capanode.workers import SandboxedWorkers
from protocol.net.relay_places import RelayLimits
from protocol.programs.keyfile import load_key_file
from protocol.programs.locks import hold_lock
from protocol.programs.process_memory import settle_garbage_collection
from protocol.programs.runtime import Runtime, system_runtime
from protocol.programs.sharing.blob_server import BlobServer
from protocol.programs.shutdown import StopSignals, run_until_signal
from protocol.programs.version import program_version
from protocol.services import BLOB_PROTOCOL

log = structlog.get_logger(__name__)

STATUS_EVERY_S = 1.0

OnStatus = Callable[[NodeStatus], None]
Keeper = Callable[[], Awaitable[None]]


class NodeEnd(StrEnum):
    """How a node that ended in good order was told to."""

    STOPPED = "stopped"
    # By `capanode drain`: it shall not be started again before its owner says so.
    DRAINED = "drained"


async def serve(
    config: NodeConfig,
    *,
    software: str,
    on_milestone: OnMilestone,
    on_status: OnStatus | None = None,
) -> NodeEnd:
    """Run a node until it is told to stop. Raises CapaError of many kinds, each with advice.

    Must run on the main thread: workers die with the thread that started them.
    """
    with _hold_data_dir(config):
        key = load_key_file(config.key_path)
        for place in config.listen:
            _require_port(place)
        plan = plan_start(config, on_milestone)
        runtime = system_runtime()
        # libp2p alone takes 45 MB: only the running node loads it.
        from protocol.net.libp2p import Libp2pTransport  # noqa: PLC0415

        transport = Libp2pTransport(
            key,
            config.listen,
            announce=config.announce,
            policy=config.dial_policy,
            relay=RelayLimits() if config.relay else None,
        )
        models = ModelStore(config.model_store)
        if config.share_models:
            shared = BlobServer.of_store(
                config.model_store, role=ROLE, mbit_per_s=config.share_mbit_per_s
            )
            transport.handle(BLOB_PROTOCOL, shared.handle)
        store = OutboxStore(config.outbox_path)
        try:
            workers = SandboxedWorkers(
                plan.sandbox,
                rng=runtime.child_rng(),
                nice=config.worker_nice,
                whole_sys=plan.whole_sys,
            )
            node = Node(
                key,
                transport,
                workers,
                plan.plans,
                _rules(config, plan, software),
                store=store,
                speeds=SpeedCache(config.benchmarks_path, others_cpu_s=others_cpu_s),
                runtime=runtime,
                loads=LoadCache(config.load_times_path),
                on_milestone=on_milestone,
            )
            pause = OwnerPause(node.pauses, config.pause_path)
            settings = LiveSettings(node, config, reread=reread_config)
            commands = OwnerCommands(node, pause, reload=settings.reload)
            server = StatusServer(node, config.status_socket, commands)
            fallback = ProcessorFallback(
                node,
                workers,
                partial(on_processor, processor=plan.processor),
                is_wanted=lambda: config.if_gpu_fails is IfGpuFails.CPU,
                on_milestone=on_milestone,
            )
            keepers = (*_keepers(node, settings, runtime), fallback.run)
            # Other programs that share the store leave alone what is served here.
            with models.use.hold(one.digest for one in plan.plans):
                await run_until_signal(partial(_run, node, server, keepers, on_status))
        finally:
            store.close()
        return NodeEnd.DRAINED if node.is_drained_for_good else NodeEnd.STOPPED


def _keepers(node: Node, settings: LiveSettings, runtime: Runtime) -> tuple[Keeper, ...]:
    """What goes on beside the jobs for as long as the node runs."""
    watch = OwnerWatch(
        node.pauses,
        settings=lambda: settings.config,
        read_use=MachineMeter().read,
        clock=runtime.clock,
        runner=runtime.runner,
    )
    prices = PriceKeeper(node, bounds=settings.price_bounds)

    def tell(words: str) -> None:
        node.notice = words

    updates = UpdateWatch(
        program_version(), is_wanted=lambda: settings.config.update_check, on_newer=tell
    )
    again = Remeasurer(node, is_quiet=lambda: watch.is_quiet)
    return watch.run, prices.run, again.run, updates.run


async def _run(
    node: Node,
    server: StatusServer,
    keepers: Sequence[Keeper],
    on_status: OnStatus | None,
    signals: StopSignals,
) -> None:
    """Serve until the node has ended in good order; its status is served meanwhile."""
    async with trio.open_nursery() as nursery:

        async def live(*, task_status: trio.TaskStatus[None]) -> None:
            await node.run(task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(live)
        signals.is_up = True
        settle_garbage_collection()
        await nursery.start(server.run)
        for keeper in keepers:
            nursery.start_soon(keeper)
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


def _rules(config: NodeConfig, plan: StartPlan, software: str) -> NodeRules:
    rules = NodeRules(
        coordinators=config.coordinators,
        isolation=plan.tier,
        hardware=plan.hardware,
        software=software,
        listen=config.listen,
        region=config.region,
        data_collection=config.data_collection,
        is_announced_by_hand=bool(config.announce),
        find_mappers=find_mappers if config.map_port and not config.announce else None,
        virtual_network=virtual_network(),
        model_room=plan.room,
    )
    return live_rules(rules, config)


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
