"""Everything that is to be seen on a GPU, in one run of at most four minutes: `sim bench gpu`.

Whether CUDA starts in the sandbox, how fast our engine is and what holds it up, how exact, what the
sandbox costs, and transformers beside it. Without a GPU the same code runs a tiny model on the
processor, so that it does not rot; those figures say nothing. A stage that fails is told and the
others go on; a stage that would begin after its time is left out.

Weights are random: speeds depend on shapes alone.
"""

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from capanode.engines.causal_lm import CausalLM
from capanode.gpus import chosen_gpus, read_nvml
from capanode.sandbox.gpu import GpuDevice, plan_grant
from capanode.sandbox.probe import probe_isolation
from protocol.errors import CapaError
from sim.bench import gpu_engine, gpu_kernels
from sim.bench.gpu_engine import Cell, MeasuredModel
from sim.bench.gpu_peers import continuous_batching_tps
from sim.bench.gpu_start import child_program, filters, measure_starts, run_child
from sim.bench.random_model import EIGHT_B, ONE_B, TINY, ModelShape, write_random_model

_BUDGET_S = 220.0
# In memory, if there is room: 16 GB are written and read once.
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # the models are no secret
_CHUNKS = (128, 512, 2_048)
# What torch, transformers and our own code raise where something is missing or too large.
_FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, ImportError, OSError),
    *(AssertionError, NotImplementedError, CapaError),
)


@dataclass(frozen=True, slots=True)
class Size:
    """What one run measures. `small` also runs confined and in transformers."""

    small: ModelShape
    small_cells: tuple[Cell, ...]
    peer_cell: Cell
    large: ModelShape | None
    large_cells: tuple[Cell, ...]
    filters: tuple[str, ...]
    chunks: tuple[int, ...]
    batch_rows: int


def _cells(*pairs: tuple[int, int]) -> tuple[Cell, ...]:
    return tuple(Cell(rows, context) for rows, context in pairs)


# The most telling first: time may run out.
FULL = Size(
    small=ONE_B,
    small_cells=_cells((1, 200), (32, 1_000)),
    peer_cell=Cell(32, 200),
    large=EIGHT_B,
    large_cells=_cells(
        *((1, 200), (32, 1_000), (8, 200), (64, 200), (8, 1_000), (64, 1_000), (1, 4_000)),
        *((8, 4_000), (32, 4_000), (64, 4_000)),
    ),
    filters=tuple(filters()),
    chunks=_CHUNKS,
    batch_rows=32,
)
SMALL = Size(
    small=TINY,
    small_cells=_cells((1, 16), (3, 32)),
    peer_cell=Cell(2, 16),
    large=None,
    large_cells=(),
    filters=("ours",),
    chunks=(16,),
    batch_rows=3,
)


@dataclass(slots=True)
class _Run:
    """The figures so far, and the time that is left."""

    device: str
    devices: tuple[GpuDevice, ...]
    folder: Path
    figures: dict[str, float] = field(default_factory=dict)
    began_s: float = field(default_factory=time.perf_counter)

    def stage(self, name: str, measure: Callable[[], dict[str, float]], *, latest: float) -> None:
        """Run one stage, unless that share of the time is spent already. What a stage raises is
        told: it may need a kernel or a library that this machine has not."""
        if time.perf_counter() - self.began_s > latest * _BUDGET_S:
            _tell(f"{name}: left out, the time is up")
            self.figures[f"{name}_failed"] = 1.0
            return
        began_s = time.perf_counter()
        try:
            self.figures |= measure()
            self.figures[f"{name}_failed"] = 0.0
        except _FAILURES as error:
            _tell(f"{name}: {type(error).__name__}: {error}")
            self.figures[f"{name}_failed"] = 1.0
        _tell(f"{name}: {time.perf_counter() - began_s:.1f} s")
        if self.device != "cpu":
            # What this stage held is the next one's: some of it runs in another process.
            gc.collect()
            torch.cuda.empty_cache()


def run(size: Size | None = None) -> dict[str, float]:
    """Figures by name; names of cells are ROWSxCONTEXT. `start_…` are CUDA's own numbers: 0 works,
    -1 there is no driver, -2 the process ended without a word."""
    has_gpu = torch.cuda.is_available()
    size = size or (FULL if has_gpu else SMALL)
    gpus = chosen_gpus(read_nvml().gpus, {})[:1] if has_gpu else ()
    _tell(_machine(has_gpu))
    with _folder() as folder:
        bench = _Run("cuda" if has_gpu else "cpu", tuple(gpu.device for gpu in gpus), folder)
        bench.stage("starts", lambda: dict(measure_starts(bench.devices, size.filters)), latest=1.0)
        copied_per_s = gpu_kernels.bandwidth(bench.device)
        bench.figures["copied_gb_per_s"] = copied_per_s / 1e9
        _measure_small(bench, size, copied_per_s)
        _measure_kernels(bench, size, copied_per_s)
        if size.large is not None:
            _measure_large(bench, size, size.large, copied_per_s)
        return bench.figures


def _measure_small(bench: _Run, size: Size, copied_per_s: float) -> None:
    """The small model bare, confined, and in transformers."""
    model_dir = write_random_model(bench.folder / size.small.name, size.small)
    load = MeasuredModel(model_dir, size.small, bench.device, copied_per_s)
    cells = size.small_cells
    bench.stage(
        "engine_small", lambda: _engine(load, cells, batch_rows=size.batch_rows), latest=0.4
    )
    bench.stage("confined", lambda: _confined(bench, load, cells), latest=0.6)
    bench.stage("peer", lambda: _peer(load, size.peer_cell), latest=0.7)


def _measure_kernels(bench: _Run, size: Size, copied_per_s: float) -> None:
    shape = size.large or size.small
    tokens = 1_000 if size.large else 64

    def errors() -> dict[str, float]:
        return gpu_kernels.attention_errors(shape, bench.device, tokens)

    bench.stage("errors", errors, latest=0.8)
    bench.stage(
        "chunks", lambda: gpu_kernels.chunk_speeds(shape, bench.device, size.chunks), latest=0.8
    )
    for cell in size.large_cells if bench.device != "cpu" else ():
        bench.stage(
            f"paged_{cell}",
            lambda cell=cell: gpu_kernels.paged_attention(  # type: ignore[misc]
                shape, bench.device, cell.rows, cell.context, copied_per_s
            ),
            latest=0.8,
        )


def _measure_large(bench: _Run, size: Size, shape: ModelShape, copied_per_s: float) -> None:
    engine: list[CausalLM] = []
    load = MeasuredModel(bench.folder / shape.name, shape, bench.device, copied_per_s)

    def read() -> dict[str, float]:
        write_random_model(load.model_dir, shape)
        engine.append(gpu_engine.load_engine(load, size.large_cells))
        return {"large_context": float(engine[0].info.context_tokens)}

    bench.stage("large_load", read, latest=0.6)
    for cell in size.large_cells if engine else ():
        bench.stage(
            f"{shape.name}_{cell}",
            lambda cell=cell: gpu_engine.measure_cell(engine[0], load, cell),  # type: ignore[misc]
            latest=0.9,
        )


def _engine(load: MeasuredModel, cells: tuple[Cell, ...], *, batch_rows: int) -> dict[str, float]:
    engine = gpu_engine.load_engine(load, cells)
    figures: dict[str, float] = {}
    for cell in cells:
        figures |= gpu_engine.measure_cell(engine, load, cell)
    figures["same_in_a_batch"] = gpu_engine.same_alone_and_in_a_batch(engine, batch_rows)
    return figures


def _confined(bench: _Run, load: MeasuredModel, cells: tuple[Cell, ...]) -> dict[str, float]:
    """The same in the worker's sandbox, and its decode speed by the bare one's."""
    report = probe_isolation(bench.devices)
    if report.sandbox is None:
        raise RuntimeError("no isolation works here: `capanode doctor`")
    whole_sys = report.gpu is not None and report.gpu.whole_sys
    grant = plan_grant(bench.devices, whole_sys=whole_sys) if bench.devices else None
    order = {
        "shape": asdict(load.shape),
        "device": load.device,
        "bandwidth": load.bandwidth,
        "cells": [(cell.rows, cell.context) for cell in cells],
    }
    program = child_program("engine", json.dumps(order), model_dir=load.model_dir, gpu=grant)
    found = run_child(report.sandbox, program, within_s=60.0)
    figures = {f"confined_{name}": value for name, value in found.items()}
    for name, value in found.items():
        bare = bench.figures.get(name)
        if name.endswith("_decode_tps") and bare:
            figures[f"confined_ratio_{name.removesuffix('_decode_tps')}"] = value / bare
    return figures


def _peer(load: MeasuredModel, cell: Cell) -> dict[str, float]:
    tokens = 4 if load.device == "cpu" else 64
    speed = continuous_batching_tps(load.model_dir, load.device, cell, tokens)
    return {f"transformers_tps_{cell}": speed}


def _machine(has_gpu: bool) -> str:
    if not has_gpu:
        return f"no GPU: a tiny model on the processor, torch {torch.__version__}"
    properties = torch.cuda.get_device_properties(0)
    driver = read_nvml().driver or "unknown"
    return (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
        f"sm{properties.major}{properties.minor}, driver {driver}, torch {torch.__version__}"
    )


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@contextmanager
def _folder() -> Iterator[Path]:
    place = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="capacloud-gpu-", dir=place) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
