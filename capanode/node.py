"""The composition root: what a node is made of, and in which order that starts and stops.

    outbox      every receipt that is signed finds it open
      workers   measured, priced; a model whose worker does not start is left out
        network: transport, offers, a line to each coordinator
          jobs

`Node` knows no files, signals or processes: `capanode.serve` puts those around it, and the
simulator runs the same `Node` on an in-memory network, under virtual time, with its own workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from capanode.admission import Admission, AdmissionRules
from capanode.announce import About, Announcer
from capanode.benchmark import SpeedCache, speed_key
from capanode.control import ControlLine
from capanode.errors import ModelNotLoadedError, NodeError, NothingToServeError
from capanode.hourly_rates import DEFAULT_HOURLY_RATES, HourlyRates
from capanode.jobs import ROLE, JobServer
from capanode.load_cache import KnownLoad, LoadCache, load_key
from capanode.measurements import Speed
from capanode.milestones import (
    Milestone,
    OnMilestone,
    draining,
    ignore_milestone,
    model_failed,
    model_loading,
    model_measuring,
    model_ready,
    node_ready,
)
from capanode.outbox import MadeBy, Outbox
from capanode.outbox_store import OutboxStore
from capanode.pauses import Pauses
from capanode.pricing_policy import hourly_nano, propose_price
from capanode.reach import Reachability
from capanode.reach.network_watch import watch_network
from capanode.reach.port_keeper import FindMappers, PortKeeper
from capanode.residency import Residency
from capanode.seats import Seats
from capanode.served import ModelWorker, ServedModel, within_signature_room
from capanode.settings import CoordinatorAddress
from capanode.swapping import ModelSwapper, SwappedWorker
from capanode.utilization_price import scaled
from capanode.workers import ModelPlan, WorkerPool
from protocol.ids import Digest, PeerId
from protocol.keys import SigningKey
from protocol.limits import LOAD_MS_MAX
from protocol.messages import DataCollection, IsolationTier
from protocol.net.pool import StreamPool
from protocol.net.rpc import RpcClient
from protocol.net.transport import Transport
from protocol.offers import BATCH_PERCENT_DEFAULT, Hardware, LoadReport, ModelOffer
from protocol.pricing import PERCENT, PriceSheet
from protocol.programs.runtime import Runtime
from protocol.programs.shutdown import Stages, open_stages
from protocol.services import CONTROL_PROTOCOL, JOB_PROTOCOL

log = structlog.get_logger(__name__)

# After the last job, receipts get this long to reach their coordinators; the outbox keeps the rest.
HAND_IN_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True)
class NodeRules:
    """What the operator and the machine decide."""

    coordinators: tuple[CoordinatorAddress, ...]
    isolation: IsolationTier
    hardware: Hardware
    software: str
    listen: tuple[str, ...] = ()
    region: str = ""
    data_collection: DataCollection = DataCollection.DENY
    queue_max: int = 16
    per_client_max: int = 64
    rates: HourlyRates = DEFAULT_HOURLY_RATES
    batch_percent: int = BATCH_PERCENT_DEFAULT
    drain_s: float = 30.0
    # The operator wrote down what to announce.
    is_announced_by_hand: bool = False
    # How to find the ways to ask a router for a port; None asks none.
    find_mappers: FindMappers | None = None
    # What models may take that share memory which does not hold all of them, by device.
    model_room: Mapping[str, int] = field(default_factory=dict)
    # The container or virtual machine that the node runs in, as `virtual_network` names it.
    virtual_network: str = ""


class Node:
    """One provider. `run` is its life; `stop` ends it in good order, cancelling at once."""

    def __init__(
        self,
        key: SigningKey,
        transport: Transport,
        workers: WorkerPool,
        plans: Sequence[ModelPlan],
        rules: NodeRules,
        *,
        store: OutboxStore,
        speeds: SpeedCache,
        loads: LoadCache | None = None,
        runtime: Runtime,
        on_milestone: OnMilestone = ignore_milestone,
    ) -> None:
        runtime = runtime.steadied()
        self.key = key
        self.transport = transport
        self.rules = rules
        self.started_at_ms = runtime.clock.now_ms()
        self.outbox = Outbox(
            store, clock=runtime.clock, runner=runtime.runner, made_by=self._made_by
        )
        self.models: dict[Digest, ServedModel] = {}
        self._workers = workers
        self.plans = tuple(plans)
        self._own_prices = {plan.name: plan.price for plan in self.plans}
        self.price_percent = PERCENT
        self._speeds = speeds
        self._loads = loads or LoadCache(None)
        self._runtime = runtime
        self._tell = on_milestone
        self._stopping = trio.Event()
        self._drain_s = rules.drain_s
        self.is_drained_for_good = False
        # For the owner, beside the warnings of `capanode status`; empty if there is nothing.
        self.notice = ""
        self.pauses = Pauses(self._worker_changed)
        self.reach = Reachability(
            transport,
            by_hand=rules.is_announced_by_hand,
            relays=[coordinator.address for coordinator in rules.coordinators],
            virtual=rules.virtual_network,
            on_change=self._reach_changed,
        )
        self.announcer = Announcer(
            transport,
            key,
            self._about(),
            self._offered_models,
            clock=runtime.clock,
            rng=runtime.child_rng(),
            addresses=self.reach.offered,
        )
        self.admission = Admission(
            self._admission_rules(),
            self.models,
            self.announcer.offers,
            storage_failure=lambda: self.outbox.failure,
            is_paused=lambda: self.pauses.is_paused,
        )
        self._swapper = self._make_swapper()
        self.jobs = JobServer(
            key, self.admission, self.outbox, clock=runtime.clock, on_change=self._load_changed
        )
        self._pool = StreamPool(transport, CONTROL_PROTOCOL, role=ROLE, rng=runtime.child_rng())
        self.lines = self._make_lines(RpcClient(self._pool))
        transport.handle(JOB_PROTOCOL, self.jobs.serve)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop` or cancelled; `started` when jobs can come.

        Raises NothingToServeError if no model can be run, NetError if the network cannot be used.
        """
        async with open_stages() as stages:
            await stages.start("outbox", self.outbox.run)
            await self._start_models(stages)
            for run in (self.transport.run, self._pool.run, self.announcer.run):
                await stages.start("network", run)
            await stages.start("network", partial(watch_network, self.transport, self.reach))
            if self.rules.find_mappers is not None:
                keeper = PortKeeper(self.transport, self.reach, self.rules.find_mappers)
                await stages.start("network", keeper.run)
            for line in self.lines:
                await stages.start("network", line.run)
            self._tell(self._ready())
            task_status.started()
            await self._stopping.wait()
            await self._wind_down()

    @property
    def loaded_plans(self) -> tuple[ModelPlan, ...]:
        """Those that take memory now."""
        cold = {model.digest for model in self.models.values() if model.load_ms}
        return tuple(plan for plan in self.plans if plan.digest not in cold)

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self, *, within_s: float | None = None, for_good: bool = False) -> None:
        """Take no more jobs, finish those that run within so long (the rules say how long if it is
        None), hand receipts in, and end. A service manager shall not start it again if
        it ends `for_good`."""
        self._drain_s = self.rules.drain_s if within_s is None else within_s
        self.is_drained_for_good |= for_good
        self._stopping.set()

    def load(self) -> LoadReport:
        models = tuple(model.load() for model in self.models.values())
        is_away = self.admission.is_draining or self.pauses.is_paused
        return LoadReport(self.announcer.incarnation_ms, is_away, models)

    def change(self, rules: NodeRules, prices: Mapping[str, PriceSheet | None]) -> None:
        """The owner has changed its mind: about rules that hold for the jobs to come, and about the
        prices of models by name (None, or no entry, lets the policy propose one)."""
        self.rules = rules
        self.admission.rules = self._admission_rules()
        self._own_prices = dict(prices)
        for model in self.models.values():
            model.batch_percent = rules.batch_percent
            model.seats.queue_max = rules.queue_max
        self._price_again()

    def ask_percent(self, percent: int) -> None:
        """Ask for so many percent of what the hourly rates propose; the owner's own prices stay."""
        self.price_percent = percent
        self._price_again()

    def doubt_speed(self, model: ServedModel) -> None:
        """Real jobs contradict it: the next measurement replaces it."""
        self._speeds.doubt(self._key_of(model))

    def is_speed_settled(self, model: ServedModel) -> bool:
        """False if it was only measured while other programs were busy."""
        return self._speeds.is_settled(self._key_of(model))

    async def measure_again(self, model: ServedModel) -> None:
        """Offer what is measured now, unless a job came meanwhile. Raises BenchmarkError."""
        key = self._key_of(model)
        jobs_done = model.jobs_done
        now_ms = self._runtime.clock.now_ms()
        measured = await self._speeds.measure(key, model.worker, now_ms=now_ms)
        if self.jobs.live_jobs or model.jobs_done != jobs_done:
            return
        self._speeds.keep(key, measured)
        speed = self._speeds.find(key, now_ms=now_ms)
        assert speed is not None, "one was kept just now"
        log.info("model_measured_again", model=model.name, before=model.speed, now=speed)
        if speed != model.speed:
            model.speed = speed
            self._price_again()

    # Starting.

    async def _start_models(self, stages: Stages) -> None:
        """Start all workers, then measure one after the other, so that none slows another down.
        Cold models come first, while there is room to measure those that are not known."""
        ready: dict[Digest, ModelWorker] = {}
        hot = [plan for plan in self.plans if not plan.is_cold]
        await stages.start("workers", self._swapper.run)
        for plan in self.plans:
            if plan.is_cold:
                await self._adopt_cold(plan)

        async def start(plan: ModelPlan) -> None:
            worker = self._worker_of(plan)
            self._tell(model_loading(plan.name))
            try:
                await stages.start("workers", worker.run)
            except NodeError as error:
                log.error("model_not_started", model=plan.name, error=str(error))
                self._tell(model_failed(plan.name, error))
            else:
                ready[plan.digest] = worker

        async with trio.open_nursery() as nursery:
            for plan in hot:
                nursery.start_soon(start, plan)
        for plan in hot:
            if plan.digest in ready:
                await self._adopt(plan, ready[plan.digest])
        # In the owner's order, not in that of the loads.
        for plan in self.plans:
            if plan.digest in self.models:
                self.models[plan.digest] = self.models.pop(plan.digest)
        if not self.models:
            raise NothingToServeError(
                "no model could be started: see the errors above, and `capanode doctor`"
            )

    def _worker_of(self, plan: ModelPlan) -> ModelWorker:
        pool = self._workers if plan.footprint is None else self._swapper
        return pool.worker(plan, on_state=lambda _: self._worker_changed())

    async def _adopt_cold(self, plan: ModelPlan) -> None:
        """Offer a model that is not loaded. If no earlier run has measured it, that comes first."""
        worker = self._swapper.worker(plan, on_state=lambda _: self._worker_changed())
        key = load_key(plan, software=self.rules.software)
        known = self._loads.find(key)
        if known is not None and self._known_speed(plan, known.info.slots) is not None:
            worker.know(known)
            await self._adopt(plan, worker)
            return
        self._tell(model_loading(plan.name))
        try:
            await self._swapper.load_at_start(worker)
        except NodeError as error:
            log.error("model_not_started", model=plan.name, error=str(error))
            self._tell(model_failed(plan.name, error))
            return
        if worker.usual_load_ms <= LOAD_MS_MAX:
            await self._adopt(plan, worker)
        else:
            self._tell(model_failed(plan.name, _too_slow_to_load(worker.usual_load_ms)))
        await self._swapper.unload(worker)
        if worker.info is not None and plan.digest in self.models:
            self._loads.keep(key, KnownLoad(worker.info, worker.usual_load_ms))

    async def _adopt(self, plan: ModelPlan, worker: ModelWorker) -> None:
        """Measure, price and serve one model; one that fails its measurement is left out."""
        info = worker.info
        assert info is not None, "a worker that started has said what it is"
        try:
            speed = await self._speed(plan, worker)
        except NodeError as error:
            log.error("model_not_measured", model=plan.name, error=str(error))
            self._tell(model_failed(plan.name, error))
            return
        model = ServedModel(
            name=plan.name,
            digest=plan.digest,
            manifest=plan.manifest,
            worker=worker,
            seats=Seats(slots=info.slots, queue_max=self.rules.queue_max),
            speed=speed,
            price=PriceSheet(),
            threads=plan.threads,
            hardware=plan.hardware,
            batch_percent=self.rules.batch_percent,
            on_demand=worker if isinstance(worker, SwappedWorker) else None,
        )
        model.price = self._price_of(model)
        self.models[plan.digest] = model
        self._tell(model_ready(model, is_proposed=plan.price is None))

    async def _speed(self, plan: ModelPlan, worker: ModelWorker) -> Speed:
        """Raises BenchmarkError."""
        assert worker.info is not None
        speed = self._known_speed(plan, worker.info.slots)
        if speed is None:
            self._tell(model_measuring(plan.name))
            key = self._key_of_plan(plan, worker.info.slots)
            now_ms = self._runtime.clock.now_ms()
            measured = await self._speeds.measure(key, worker, now_ms=now_ms)
            self._speeds.keep(key, measured)
            speed = measured.speed
        return speed

    def _known_speed(self, plan: ModelPlan, slots: int) -> Speed | None:
        key = self._key_of_plan(plan, slots)
        return self._speeds.find(key, now_ms=self._runtime.clock.now_ms())

    def _key_of_plan(self, plan: ModelPlan, slots: int) -> str:
        return self._speed_key(plan.digest, plan.hardware, slots=slots, threads=plan.threads)

    def _speed_key(
        self, model: Digest, hardware: Hardware | None, *, slots: int, threads: int
    ) -> str:
        rules = self.rules
        return speed_key(
            model,
            hardware or rules.hardware,
            slots=slots,
            threads=threads,
            software=rules.software,
        )

    def _key_of(self, model: ServedModel) -> str:
        return self._speed_key(
            model.digest, model.hardware, slots=model.seats.slots, threads=model.threads
        )

    # Prices.

    def _price_again(self) -> None:
        """New jobs see the new prices; leases rest on the offers that they name."""
        for model in self.models.values():
            model.price = self._price_of(model)
        self._worker_changed()

    def _price_of(self, model: ServedModel) -> PriceSheet:
        own = self._own_prices.get(model.name)
        if own is not None:
            return own
        rules = self.rules
        hourly = hourly_nano(model.hardware or rules.hardware, rules.rates, threads=model.threads)
        proposed = propose_price(model.manifest.task, model.speed, hourly_nano=hourly)
        return scaled(proposed, self.price_percent)

    # Stopping.

    async def _wind_down(self) -> None:
        self.admission.is_draining = True
        jobs = self.jobs.live_jobs
        log.info("draining", jobs=jobs, within_s=self._drain_s)
        self._tell(draining(jobs))
        self._load_changed()
        await self.announcer.publish_now()
        await self.jobs.drain(within_s=self._drain_s)
        with trio.move_on_after(HAND_IN_WITHIN_S):
            await self.outbox.wait_empty()

    # What changed.

    def _offered_models(self) -> tuple[ModelOffer, ...]:
        if self.admission.is_draining or self.pauses.is_paused:
            return ()
        offers = tuple(model.offer() for model in self.models.values() if model.is_offered)
        return within_signature_room(offers)

    def _worker_changed(self) -> None:
        self.announcer.changed()
        self._load_changed()

    def _reach_changed(self) -> None:
        self.announcer.changed()

    def _load_changed(self) -> None:
        for line in self.lines:
            line.load_changed()

    # Parts.

    def _make_swapper(self) -> ModelSwapper:
        sizes = {plan.digest: plan.footprint for plan in self.plans if plan.footprint is not None}
        return ModelSwapper(
            self._workers,
            Residency(self.rules.model_room, sizes),
            is_in_use=self.admission.has_jobs,
            on_change=self._load_changed,
            on_milestone=self._tell,
        )

    def _made_by(self, digest: Digest) -> MadeBy:
        """A job for a model that is not here earns nothing."""
        model = self.models.get(digest)
        if model is None:
            return MadeBy()
        return MadeBy(model.name, (model.hardware or self.rules.hardware).name)

    def _about(self) -> About:
        return About(
            region=self.rules.region,
            isolation=self.rules.isolation,
            hardware=self.rules.hardware,
            software=self.rules.software,
            data_collection=self.rules.data_collection,
        )

    def _admission_rules(self) -> AdmissionRules:
        return AdmissionRules(
            node=self.key.peer_id,
            coordinators=frozenset(c.peer for c in self.rules.coordinators),
            isolation=self.rules.isolation,
            data_collection=self.rules.data_collection,
            per_client_max=self.rules.per_client_max,
        )

    def _make_lines(self, rpc: RpcClient) -> tuple[ControlLine, ...]:
        addresses: dict[PeerId, list[str]] = {}
        for coordinator in self.rules.coordinators:
            addresses.setdefault(coordinator.peer, []).append(coordinator.address)
        return tuple(
            ControlLine(
                rpc,
                peer,
                listed,
                announcer=self.announcer,
                outbox=self.outbox,
                load=self.load,
                opened=self.admission.opened,
                reach=self.reach,
                clock=self._runtime.clock,
                rng=self._runtime.child_rng(),
            )
            for peer, listed in addresses.items()
        )

    def _ready(self) -> Milestone:
        names = [model.name for model in self.models.values()]
        return node_ready(self.key.peer_id, self.transport.addresses, names, self.rules.isolation)


def _too_slow_to_load(load_ms: int) -> ModelNotLoadedError:
    return ModelNotLoadedError(
        f"it does not fit beside the other models, and loading it takes {load_ms / 1_000:.0f} s, "
        f"longer than any job waits ({LOAD_MS_MAX // 1_000} s)"
    )
