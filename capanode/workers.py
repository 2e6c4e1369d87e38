"""Which models this node runs, and the workers that run them.

A plan says what to run and how large; a pool makes a worker of it. The real pool confines each in
the sandbox that the self-test has proven; a simulation has one without processes.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from capanode.errors import NothingToServeError
from capanode.gpus import Gpu
from capanode.hardware import Machine
from capanode.memory_ledger import MemoryPromise
from capanode.models.errors import UnsafeModelError
from capanode.models.store import ModelStore
from capanode.residency import Footprint
from capanode.sandbox.limits import NICE_DEFAULT, limits_for_model, with_open_start
from capanode.sandbox.opening import SandboxOpening
from capanode.sandbox.spawn import Sandbox
from capanode.served import ModelWorker
from capanode.settings import EngineWish, ModelSettings
from capanode.tasks import CODE_ARCHITECTURES, NODE_TASKS, engine_of
from capanode.worker.jobs import WorkerState
from capanode.worker.spec import LOAD_TIMEOUT_S, OPEN_LOAD_TIMEOUT_S, GpuShare, WorkerSpec
from capanode.worker.supervisor import WorkerSupervisor
from protocol.ids import Digest
from protocol.manifest import ModelManifest
from protocol.offers import Hardware
from protocol.pricing import PriceSheet
from protocol.programs.sharing.model_folder import StoredModel

# A GPU streams its weights once for the whole batch, so that more jobs cost little.
GPU_SLOTS = 64
# Half a kilobyte each: more would not fit into an offer that gossip carries.
MODELS_MAX = 32
# More threads than this on one step of a small model wait for each other more than they compute.
THREADS_MAX = 16


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model to serve. `price` is the operator's, None to let the policy propose one; `wish` is
    which engine it is to be. `gpus` are the devices that it was promised memory of, () for the
    processor, and `with_vllm` says whether that is its engine (see `capanode.placement`)."""

    name: str
    digest: Digest
    manifest: ModelManifest
    path: Path
    slots: int
    threads: int
    price: PriceSheet | None = None
    wish: EngineWish | None = None
    with_vllm: bool = False
    gpus: tuple[Gpu, ...] = ()
    promise: MemoryPromise | None = None
    # What it runs on, where that is not what the node's offer says of all.
    hardware: Hardware | None = None
    keep_loaded: bool = False
    # What it takes where models share memory that does not hold all of them (`capanode.swapping`);
    # None for a model that is loaded once and stays. One that `is_cold` is not loaded at the start.
    footprint: Footprint | None = None
    is_cold: bool = False

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.manifest.files)


class WorkerPool(Protocol):
    """Makes workers. `on_state` hears of every change of a worker's state."""

    def worker(
        self, plan: ModelPlan, *, on_state: Callable[[WorkerState], None]
    ) -> ModelWorker: ...


class SandboxedWorkers:
    """The real pool: a supervised process for each model."""

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        rng: random.Random,
        nice: int = NICE_DEFAULT,
        whole_sys: bool = False,
    ) -> None:
        """`whole_sys`: what the self-test found that the GPUs' driver needs."""
        self._sandbox = sandbox
        self._nice = nice
        self._whole_sys = whole_sys
        self._rng = rng

    def worker(self, plan: ModelPlan, *, on_state: Callable[[WorkerState], None]) -> ModelWorker:
        spec = worker_spec(plan, nice=self._nice, whole_sys=self._whole_sys)
        return WorkerSupervisor(self._sandbox, spec, rng=self._rng, on_state=on_state)


def worker_spec(plan: ModelPlan, *, nice: int, whole_sys: bool = False) -> WorkerSpec:
    """What a worker for this plan is to run, and within which limits."""
    opening = _opening_of(plan)
    limits = limits_for_model(plan.bytes, gpu=bool(plan.gpus), threads=plan.threads, nice=nice)
    if opening is not SandboxOpening.CLOSED:
        limits = with_open_start(limits, cards=len(plan.gpus))
    return WorkerSpec(
        engine=engine_of(plan.manifest.task, plan.manifest.architecture, with_vllm=plan.with_vllm),
        model_dir=plan.path,
        limits=limits,
        slots=plan.slots,
        threads=plan.threads,
        gpu=_share_of(plan, whole_sys=whole_sys),
        load_timeout_s=LOAD_TIMEOUT_S if opening is SandboxOpening.CLOSED else OPEN_LOAD_TIMEOUT_S,
        opening=opening,
    )


def _share_of(plan: ModelPlan, *, whole_sys: bool) -> GpuShare | None:
    if not plan.gpus:
        return None
    allocated = None if plan.promise is None else plan.promise.allocated_bytes
    return GpuShare(tuple(gpu.device for gpu in plan.gpus), allocated, whole_sys)


def _opening_of(plan: ModelPlan) -> SandboxOpening:
    if not plan.with_vllm:
        return SandboxOpening.CLOSED
    return SandboxOpening.GROUP if len(plan.gpus) > 1 else SandboxOpening.START


def plan_models(
    settings: tuple[ModelSettings, ...],
    store: ModelStore,
    machine: Machine,
    *,
    gpu: bool,
    allow_code: bool = False,
) -> tuple[ModelPlan, ...]:
    """What to serve: the models of the configuration, or else all that the store holds.

    Raises UnknownModelError or CorruptModelError for a model that was named, NothingToServeError
    if nothing is there, UnsafeModelError for a program without `allow_code`.
    """
    wanted = settings or tuple(map(ModelSettings, sorted(store.names())))
    if not wanted:
        raise NothingToServeError(
            f"there is no model in {store.root}: get one with `capanode models pull NAME`"
        )
    if len(wanted) > MODELS_MAX:
        raise NothingToServeError(
            f"one node offers at most {MODELS_MAX} models, not {len(wanted)}: list those that it "
            "shall serve under [models] in its configuration"
        )
    plans: dict[Digest, ModelPlan] = {}
    for setting in wanted:
        stored = store.find(setting.name)
        if not allow_code:
            refuse_code(stored)
        plan = _plan(setting, stored, machine, gpu=gpu)
        # Two names of one model would run it twice and offer it twice.
        plans.setdefault(plan.digest, plan)
    return tuple(plans.values())


def refuse_code(stored: StoredModel) -> None:
    """Raises UnsafeModelError for a model that is a program."""
    if stored.manifest.architecture in CODE_ARCHITECTURES:
        raise UnsafeModelError(
            f"{stored.manifest.name} is a program of torch.export, and loading it runs code of its "
            "maker: set allow_code_models (--allow-code-models) if you trust that, or list the "
            "models to serve without it"
        )


def _plan(setting: ModelSettings, stored: StoredModel, machine: Machine, *, gpu: bool) -> ModelPlan:
    return ModelPlan(
        name=setting.name if setting.name != stored.digest else stored.manifest.name,
        digest=stored.digest,
        manifest=stored.manifest,
        path=stored.path,
        slots=setting.slots or (GPU_SLOTS if gpu else NODE_TASKS[stored.manifest.task].cpu_slots),
        threads=setting.threads or max(1, min(machine.cpu_threads, THREADS_MAX)),
        price=setting.price,
        keep_loaded=setting.keep_loaded,
        wish=setting.engine,
    )
