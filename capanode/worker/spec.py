"""What one worker is to run, as the node decides it and as it travels into the sandbox."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from capanode.sandbox.gpu import GpuDevice, plan_grant
from capanode.sandbox.limits import Limits
from capanode.sandbox.opening import SandboxOpening
from capanode.sandbox.spawn import Program
from capanode.sandbox.view import own_packages
from capanode.worker.device import CPU, CUDA

# How the process ends, told apart by the node. 70 is sysexits' word for an internal error.
EXIT_LOAD_FAILED = 69
EXIT_STEP_FAILED = 70
EXIT_OUT_OF_MEMORY = 71
EXIT_NO_DEVICE = 72

# A large model from a slow disk: 14 GB at 100 MB/s. Nothing waits for it but its own offer.
LOAD_TIMEOUT_S = 180.0

# vLLM compiles a model before it serves it: 233 s of an 8B on an L40S, as others report.
OPEN_LOAD_TIMEOUT_S = 900.0

# A step of a healthy engine takes well under a second; the longest is a prefill in one piece.
HANG_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class GpuShare:
    """The devices that a worker runs on, and how much it may allocate of each. `whole_sys`: see
    `capanode.sandbox.gpu.plan_grant`."""

    devices: tuple[GpuDevice, ...]
    allocated_bytes: int | None = None
    whole_sys: bool = False


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One model to serve, on the processor without a `gpu`. `engine` is `module:Class`, with a
    classmethod `load(model_dir, *, slots, threads, device)`; `packages` are the folders that the
    worker may import. `opening`: how open the sandbox is until the engine is loaded."""

    engine: str
    model_dir: Path
    limits: Limits
    slots: int
    threads: int
    gpu: GpuShare | None = None
    load_timeout_s: float = LOAD_TIMEOUT_S
    hang_after_s: float = HANG_AFTER_S
    packages: tuple[Path, ...] = field(default_factory=own_packages)
    opening: SandboxOpening = SandboxOpening.CLOSED

    def program(self) -> Program:
        share = self.gpu
        options = EngineOptions(
            self.engine,
            self.slots,
            self.threads,
            CPU if share is None else CUDA,
            None if share is None else share.allocated_bytes,
        )
        # Planned anew at every start: a driver may have come back elsewhere.
        grant = None if share is None else plan_grant(share.devices, whole_sys=share.whole_sys)
        return Program(
            "capanode.worker.main",
            limits=self.limits,
            arguments=(options.to_json(),),
            model_dir=self.model_dir,
            packages=self.packages,
            threads=self.threads,
            gpu=grant,
            opening=self.opening,
        )


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`device` is torch's word; a worker sees its own GPU only, so there is no number."""

    engine: str
    slots: int
    threads: int
    device: str = CPU
    allocated_bytes: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def parse_engine_options(text: str) -> EngineOptions:
    return EngineOptions(**json.loads(text))
