"""What a node serves and on which device, settled before anything is started: the machine, the
self-test of its sandbox (with the GPUs' driver in it), and the models' places.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from capanode.config import NodeConfig
from capanode.device_problems import DeviceFailure, DeviceProblem
from capanode.engine_choice import choose_engines
from capanode.errors import GpuError, IsolationError
from capanode.gpu_trial import settle_gpus, try_torch
from capanode.gpus import Gpu
from capanode.hardware import Machine, hardware_of, probe_machine, usable_gpus
from capanode.memory_ledger import promised_room
from capanode.milestones import Milestone, OnMilestone, gpu_not_used, model_checking, model_failed
from capanode.models.errors import CorruptModelError
from capanode.models.store import ModelStore
from capanode.placement import ModelPlacement, place_models, place_on_processor
from capanode.sandbox.probe import IsolationReport, probe_isolation
from capanode.sandbox.spawn import Sandbox
from capanode.settings import IfGpuFails
from capanode.tasks import NODE_TASKS
from capanode.vllm_package import installed_vllm, is_known_vllm
from capanode.workers import ModelPlan, plan_models
from protocol.messages import IsolationTier
from protocol.offers import Hardware

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class StartPlan:
    """`hardware` is of the devices that run something. `whole_sys`: what the driver needs to see
    (see `capanode.sandbox.gpu`)."""

    tier: IsolationTier
    sandbox: Sandbox
    whole_sys: bool
    hardware: Hardware
    plans: tuple[ModelPlan, ...]
    # See `ModelPlacement.room`.
    room: Mapping[str, int]
    processor: Hardware


def plan_start(
    config: NodeConfig,
    on_milestone: OnMilestone,
    environment: Mapping[str, str] = os.environ,
) -> StartPlan:
    """Look at the machine and decide. Blocks for a second at most, and as long as torch takes to
    start on a GPU, if there is one, and as it takes to read models that were not checked yet.

    Raises IsolationError, GpuError, and what `plan_models` raises; CorruptModelError if no model
    is left.
    """
    machine = probe_machine()
    gpus = usable_gpus(machine, environment)
    report = require_isolation(probe_isolation([gpu.device for gpu in gpus]), on_milestone)
    assert report.sandbox is not None
    whole_sys = report.gpu is not None and report.gpu.whole_sys
    settled = settle_gpus(machine, gpus, report)
    if settled.working:
        settled = try_torch(report.sandbox, settled.working, whole_sys=whole_sys)
    for failure in settled.failures:
        # One card that works is worth a start; that the others do not is told.
        if not settled.working:
            require_leave(config.if_gpu_fails, failure)
        on_milestone(gpu_not_used(failure))
    store = ModelStore(config.model_store)
    placement = _place(
        config,
        machine,
        settled.working,
        store=store,
        # Its processes are kept in by namespaces alone.
        has_vllm=is_known_vllm(installed_vllm()) and report.tier is IsolationTier.BWRAP,
        on_milestone=on_milestone,
    )
    plans = intact_plans(placement.plans, store, on_milestone)
    return StartPlan(
        tier=report.tier.with_gpu if placement.gpus else report.tier,
        sandbox=report.sandbox,
        whole_sys=whole_sys,
        hardware=hardware_of(machine, placement.gpus),
        plans=tuple(replace(plan, hardware=hardware_of(machine, plan.gpus)) for plan in plans),
        room=placement.room,
        processor=hardware_of(machine),
    )


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


def on_processor(plan: ModelPlan, processor: Hardware) -> ModelPlan:
    """The same model without its GPU, and so without vLLM."""
    return replace(
        plan,
        gpus=(),
        with_vllm=False,
        promise=None,
        footprint=None,
        slots=min(plan.slots, NODE_TASKS[plan.manifest.task].cpu_slots),
        hardware=processor,
    )


def stops_start(leave: IfGpuFails, failure: DeviceFailure) -> bool:
    """Whether a node does not start with this failure."""
    return leave is IfGpuFails.STOP and failure.problem is not DeviceProblem.TORCH_WITHOUT_CUDA


def require_leave(leave: IfGpuFails, failure: DeviceFailure) -> None:
    """Without the owner's leave nothing runs on the processor that was meant for a GPU. A torch
    without CUDA is such a leave. Raises GpuError."""
    if stops_start(leave, failure):
        raise GpuError(
            f"the GPU cannot be used: {failure}. To serve from the processor until then, set "
            "if_gpu_fails to `cpu` (--if-gpu-fails cpu)"
        )


def intact_plans(
    plans: Sequence[ModelPlan], store: ModelStore, on_milestone: OnMilestone
) -> tuple[ModelPlan, ...]:
    """Those whose files are what their digests say: a damaged model is not served under the digest
    of the sound one. Raises CorruptModelError if none is left."""
    intact: list[ModelPlan] = []
    for plan in plans:
        try:
            if not store.is_checked(plan.digest):
                on_milestone(model_checking(plan.name))
            store.check(plan.digest)
        except CorruptModelError as error:
            if len(plans) == 1:
                raise
            on_milestone(model_failed(plan.name, error))
        else:
            intact.append(plan)
    if plans and not intact:
        raise CorruptModelError("every model is damaged: pull them again, which repairs them")
    return tuple(intact)


def _place(
    config: NodeConfig,
    machine: Machine,
    gpus: Sequence[Gpu],
    *,
    store: ModelStore,
    has_vllm: bool,
    on_milestone: OnMilestone,
) -> ModelPlacement:
    """Plan what is served, and where. A model that fits on no GPU, not even alone, is left out, or
    runs on the processor with the owner's leave."""
    plan = partial(plan_models, store=store, machine=machine, allow_code=config.allow_code_models)
    wanted = plan(config.models, gpu=bool(gpus))
    plans, refused = choose_engines(wanted, has_gpu=bool(gpus), has_vllm=has_vllm)
    placement = place_models(plans, gpus, load_on_demand=config.load_on_demand, has_vllm=has_vllm)
    if not gpus and config.load_on_demand:
        limit_bytes = config.memory_max_gib * _GIB
        placement = place_on_processor(
            plans,
            limit_bytes or promised_room(machine.memory_bytes),
            is_owners_limit=bool(limit_bytes),
        )
    for model, error in (*refused, *placement.refused):
        on_milestone(model_failed(model.name, error))
    if config.if_gpu_fails is IfGpuFails.CPU and placement.refused:
        left_out = {model.digest for model, _ in placement.refused}
        slower = [made for made in plan(config.models, gpu=False) if made.digest in left_out]
        slower, _ = choose_engines(slower, has_gpu=False, has_vllm=False)
        placement = replace(placement, plans=(*placement.plans, *slower))
    return placement
