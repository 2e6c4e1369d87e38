"""Our engine at fixed numbers of rows and lengths of context: tokens per second, how near that is
to what memory allows, and who is waited for, the host or the device.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from capanode.engines.base import Failed, Produced
from capanode.engines.causal_lm import CausalLM
from protocol.generation import GenerationInput
from sim.bench.random_model import ModelShape

# Of each answer, after its first token: measured are these.
STEPS = 24
_PROFILED_STEPS = 4
# First answers go on while the last prompts are read, at worst one token for so many of a prompt.
_TOKENS_PER_PASS = 128
_PROMPT_TOKENS = 250  # distinct ones; the byte tokenizer has 256
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
_GRAPH_LAUNCHES = ("cudaGraphLaunch",)


@dataclass(frozen=True, slots=True)
class Cell:
    rows: int
    context: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.context}"


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """One model on one device. `bandwidth` is what the device copies, in bytes a second."""

    model_dir: Path
    shape: ModelShape
    device: str
    bandwidth: float


def load_engine(load: MeasuredModel, cells: Sequence[Cell]) -> CausalLM:
    threads = 2 if load.device == "cpu" else 4
    slots = max(cell.rows for cell in cells)
    return CausalLM.load(load.model_dir, slots=slots, threads=threads, device=load.device)


def measure_cell(engine: CausalLM, load: MeasuredModel, cell: Cell) -> dict[str, float]:
    """Figures of one cell, `{}` if the engine has no room for it. Prompts differ, so that nothing
    of one is reused for another."""
    began_s = time.perf_counter()
    if not _submit(engine, cell):
        return {}
    prefill_s = time.perf_counter() - began_s
    _synchronize(load.device)
    began_s = time.perf_counter()
    tokens = _decode(engine, STEPS)
    _synchronize(load.device)
    speed = tokens / (time.perf_counter() - began_s)
    profiled = _profile(engine) if load.device != "cpu" else {}
    for row in range(cell.rows):
        engine.cancel(f"{cell}-{row}")
    floor = _floor(load, cell)
    name = f"{load.shape.name}_{cell}"
    figures = {
        "prefill_tps": cell.rows * cell.context / prefill_s,
        "decode_tps": speed,
        "floor_share": speed / floor,
        **profiled,
    }
    return {f"{name}_{what}": value for what, value in figures.items()}


def _submit(engine: CausalLM, cell: Cell) -> bool:
    """Run all prompts in; True once every answer has its first token."""
    answer = 4 * STEPS + cell.rows * -(-cell.context // _TOKENS_PER_PASS)
    if cell.context + answer > engine.info.context_tokens or cell.rows > engine.info.slots:
        return False
    for row in range(cell.rows):
        start = (7 * row + cell.context) % _PROMPT_TOKENS
        prompt = tuple((start + place) % _PROMPT_TOKENS for place in range(cell.context))
        job_input = GenerationInput(
            max_tokens=answer, prompt_tokens=prompt, temperature=0.0, ignore_eos=True
        )
        engine.submit(f"{cell}-{row}", job_input)
    waiting = {f"{cell}-{row}" for row in range(cell.rows)}
    while waiting:
        for event in engine.step():
            if isinstance(event, Failed):
                raise RuntimeError(f"the engine refuses {cell}: {event.message}")
            if isinstance(event, Produced):
                waiting.discard(event.job_id)
        if engine.is_idle and waiting:
            raise RuntimeError(f"answers of {cell} ended while others had not begun")
    return True


def _decode(engine: CausalLM, steps: int) -> int:
    tokens = 0
    for _ in range(steps):
        tokens += sum(len(e.token_ids) for e in engine.step() if isinstance(e, Produced))
    return tokens


def _profile(engine: CausalLM) -> dict[str, float]:
    """Launches a step, and how long the device is busy in one and the host in all."""
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    began_s = time.perf_counter()
    with profile(activities=activities, acc_events=True) as trace:
        _decode(engine, _PROFILED_STEPS)
        torch.cuda.synchronize()
    wall_ms = (time.perf_counter() - began_s) * 1_000 / _PROFILED_STEPS
    averages = trace.key_averages()
    counts = {event.key: event.count for event in averages}
    device_us = sum(event.self_device_time_total for event in averages)
    return {
        "launches": sum(counts.get(name, 0) for name in _LAUNCHES) / _PROFILED_STEPS,
        "graph_launches": sum(counts.get(name, 0) for name in _GRAPH_LAUNCHES) / _PROFILED_STEPS,
        "device_ms": device_us / 1_000 / _PROFILED_STEPS,
        "profiled_step_ms": wall_ms,
    }


def _floor(load: MeasuredModel, cell: Cell) -> float:
    """Tokens per second if a step only read weights, keys and values once."""
    cache_bytes = cell.rows * cell.context * load.shape.token_bytes
    return cell.rows * load.bandwidth / (load.shape.step_bytes + cache_bytes)


def same_alone_and_in_a_batch(engine: CausalLM, rows: int) -> float:
    """The share of tokens that an answer has alike alone and beside others."""
    alone = _answers(engine, 1)[0]
    beside = _answers(engine, rows)[0]
    return sum(a == b for a, b in zip(alone, beside, strict=True)) / len(alone)


def _answers(engine: CausalLM, rows: int) -> list[list[int]]:
    answers: dict[str, list[int]] = {}
    for row in range(rows):
        prompt = tuple((row * 31 + place * 7) % _PROMPT_TOKENS for place in range(40 + row))
        job_input = GenerationInput(
            max_tokens=STEPS, prompt_tokens=prompt, temperature=0.0, ignore_eos=True
        )
        answers[f"row-{row}"] = []
        engine.submit(f"row-{row}", job_input)
    while not engine.is_idle:
        for event in engine.step():
            if isinstance(event, Produced):
                answers[event.job_id] += event.token_ids
    return list(answers.values())


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
