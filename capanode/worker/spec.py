"""What one worker is to run, as the node decides it and as it travels into the sandbox."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from capanode.sandbox.limits import Limits
from capanode.sandbox.spawn import Program
from capanode.sandbox.view import own_packages

# How the process ends, told apart by the node. 70 is sysexits' word for an internal error.
EXIT_LOAD_FAILED = 69
EXIT_STEP_FAILED = 70
EXIT_OUT_OF_MEMORY = 71

# A large model from a slow disk: 14 GB at 100 MB/s. Nothing waits for it but its own offer.
LOAD_TIMEOUT_S = 180.0

# A step of a healthy engine takes well under a second; the longest is a prefill in one piece.
HANG_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One model to serve. `engine` is `module:Class`, with a classmethod `load(model_dir, *, slots,
    threads)`; `packages` are the folders that the worker may import."""

    engine: str
    model_dir: Path
    limits: Limits
    slots: int
    threads: int
    gpu: bool = False
    load_timeout_s: float = LOAD_TIMEOUT_S
    hang_after_s: float = HANG_AFTER_S
    packages: tuple[Path, ...] = field(default_factory=own_packages)

    def program(self) -> Program:
        options = EngineOptions(self.engine, self.slots, self.threads)
        return Program(
            "capanode.worker.main",
            limits=self.limits,
            arguments=(options.to_json(),),
            model_dir=self.model_dir,
            packages=self.packages,
            threads=self.threads,
            gpu=self.gpu,
        )


@dataclass(frozen=True, slots=True)
class EngineOptions:
    engine: str
    slots: int
    threads: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def parse_engine_options(text: str) -> EngineOptions:
    return EngineOptions(**json.loads(text))
