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
from capanode.benchmark import SpeedCache
from capanode.control import ControlLine
from capanode.errors import NothingToServeError
from capanode.hourly_rates import DEFAULT_HOURLY_RATES, HourlyRates
from capanode.jobs import ROLE, JobServer
from capanode.load_cache import LoadCache
from capanode.measurements import Speed
from capanode.milestones import (
    Milestone,
    OnMilestone,
    draining,
    ignore_milestone,
    model_ready,
    node_ready,
)
from capanode.model_speeds import ModelSpeeds
from capanode.model_start import ModelStarter
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
from capanode.swapped_worker import SwappedWorker
from capanode.swapping import ModelSwapper
from capanode.utilization_price import scaled
from capanode.workers import ModelPlan, WorkerPool
from protocol.ids import Digest, PeerId
from protocol.keys import SigningKey
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
        self._speeds = ModelSpeeds(
            speeds, hardware=rules.hardware, software=rules.software, clock=runtime.clock
        )
        self._loads = loads or LoadCache(None)
        self._runtime = runtime
        self._tell = on_milestone
        self._stopping = trio.Event()
        self._drain_s = rules.drain_s
        self.is_drained_for_good = False
        # For the owner, beside the warnings of `capanode status`; empty if there is nothing.
        self.notice = ""
        self.pauses = Pauses(self.worker_changed)
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
            self._about,
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
    def hardware(self) -> Hardware:
        """What jobs run on: what the node started with, unless no model runs on that now."""
        own = self.rules.hardware
        found = [model.hardware or own for model in self.models.values() if model.is_offered]
        if not found or any(one.kind == own.kind for one in found):
            return own
        return found[0]

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
        self._speeds.doubt(model)

    def is_speed_settled(self, model: ServedModel) -> bool:
        """False if it was only measured while other programs were busy."""
        return self._speeds.is_settled(model)

    async def measure_again(self, model: ServedModel) -> None:
        """Offer what is measured now, unless a job came meanwhile. Raises BenchmarkError."""
        jobs_done = model.jobs_done
        measured = await self._speeds.measure_again(model)
        if self.jobs.live_jobs or model.jobs_done != jobs_done:
            return
        speed = self._speeds.keep(model, measured)
        log.info("model_measured_again", model=model.name, before=model.speed, now=speed)
        if speed != model.speed:
            model.speed = speed
            self._price_again()

    # Models that move from one device to another.

    async def take_over(self, plan: ModelPlan, worker: ModelWorker) -> ServedModel:
        """From now on this worker serves the plan's model. Raises BenchmarkError."""
        assert worker.info is not None, "a worker that started has said what it is"
        speed = self._speeds.known(plan, worker.info.slots)
        if speed is None:
            speed = await self._speeds.measure(plan, worker)
        self._adopt(plan, worker, speed)
        model = self.models[plan.digest]
        self.put_back(plan, model)
        return model

    def put_back(self, plan: ModelPlan, model: ServedModel) -> None:
        """It is served as it was planned; jobs of who served it meanwhile have ended."""
        self.plans = tuple(plan if one.digest == plan.digest else one for one in self.plans)
        self.models[plan.digest] = model
        self._price_again()

    # Starting.

    async def _start_models(self, stages: Stages) -> None:
        """Raises NothingToServeError."""
        starter = ModelStarter(
            self._workers,
            self._swapper,
            self._speeds,
            self._loads,
            software=self.rules.software,
            on_ready=self._adopt,
            on_state=lambda _: self.worker_changed(),
            on_milestone=self._tell,
        )
        await starter.start(self.plans, stages)
        # In the owner's order, not in that of the loads.
        for plan in self.plans:
            if plan.digest in self.models:
                self.models[plan.digest] = self.models.pop(plan.digest)
        if not self.models:
            raise NothingToServeError(
                "no model could be started: see the errors above, and `capanode doctor`"
            )

    def _adopt(self, plan: ModelPlan, worker: ModelWorker, speed: Speed) -> None:
        """Price and serve one model."""
        info = worker.info
        assert info is not None, "a worker that started has said what it is"
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
            with_vllm=plan.with_vllm,
            batch_percent=self.rules.batch_percent,
            on_demand=worker if isinstance(worker, SwappedWorker) else None,
        )
        model.price = self._price_of(model)
        self.models[plan.digest] = model
        self._tell(model_ready(model, is_proposed=plan.price is None))

    # Prices.

    def _price_again(self) -> None:
        """New jobs see the new prices; leases rest on the offers that they name."""
        for model in self.models.values():
            model.price = self._price_of(model)
        self.worker_changed()

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

    def worker_changed(self) -> None:
        """What is offered may be different now."""
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
            hardware=self.hardware,
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
