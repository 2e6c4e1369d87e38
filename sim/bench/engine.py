"""Our generation engine against llama.cpp, and against transformers' `generate` (eager, bfloat16).

The weights are the same: llama.cpp reads the Q4_1 file that ours were converted from.

- llama.cpp (`llama_cpp_ratio_N`, where `make bench-deps` has built it) gets the requests as ours
  does, one after another while earlier ones are answered, into continuous batches.
- Ours with few slots (`int4_…`) has its answers computed with the 4-bit codes of that very file;
  the other one, which has many slots, with the bfloat16 that the codes stand for.
- `generate` (`ratio_N`) gets all of them at once as a static batch, left-padded, which is the best
  case for it, and (`generate_ratio_N`) as they come: see `sim.bench.late_arrivals`.

Lengths of prompts and answers differ. Only tokens that a client asked for count: a static batch
computes every answer to the length of the longest, and its surplus is shown as a figure of its own
(`computed`).

Rounds of all alternate, each round with other prompts, so that a noisy moment or a warm cache
favours none. A ratio is the median over rounds of two speeds measured next to each other. Where
other programs share the machine, threads wait for each other: `llama_cpp_cpu_ratio_N` compares the
processors' time per token instead, which other programs disturb less.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from capanode.engines.causal_lm import CausalLM
from capanode.engines.grouped_linear import FEW_SLOTS
from capanode.models.catalog import load_catalog
from capanode.models.convert_gguf import convert_gguf_codes
from capanode.models.library import ensure
from capanode.models.store import ModelStore
from sim.bench import agreement, drafts, late_arrivals, prefix_hits
from sim.bench.llama_cpp import HOW_TO_GET_IT, LlamaCpp, gguf_file, open_llama_cpp
from sim.bench.streams import (
    MixedRequest,
    StreamSpeed,
    answer_streams,
    draw_requests,
    draw_tokens,
)

DEFAULT_STORE = Path(".capacloud/models")
MODEL = "smollm2-135m-instruct"
SLOTS = 32
THREADS = 2
PREFILL_TOKENS = 512

# A machine that is busy takes several times longer: then fewer rounds must do.
ROUNDS = {1: 8, 8: 4, 16: 3, 32: 3}
BUDGET_S = {1: 12.0, 8: 15.0, 16: 20.0, 32: 30.0}
LATE_STREAMS = (8, 32)
LATE_ROUNDS = 2
PREFILL_ROUNDS = 6

_SEED = 7

_Side = Callable[[Sequence[MixedRequest]], StreamSpeed]


def run(store: Path = DEFAULT_STORE) -> dict[str, float]:
    """Figures in tokens per second; ratios are ours to theirs. `prefix_hit_share` is the time to
    the first token where a prompt's beginning is known to that where it is new.
    `gumbel_agreement` is the share of our tokens that a float32 model and the same seed choose too.
    `draft_…`: see `sim.bench.drafts`.
    """
    model_dir = ensure(ModelStore(store), load_catalog(), MODEL).path
    # Without drafts, which the others do not have either: what they gain are figures of their own.
    engine = CausalLM.load(model_dir, slots=SLOTS, threads=THREADS, drafts=False)
    reference = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    few_slots = _engine_of_codes()
    rng = random.Random(_SEED)
    figures: dict[str, float] = {}
    with open_llama_cpp() as llama_cpp:
        if llama_cpp is None:
            print(HOW_TO_GET_IT, file=sys.stderr)
        for streams in ROUNDS:
            engines = {"ours": engine}
            if few_slots is not None and streams <= FEW_SLOTS:
                engines["int4"] = few_slots
            sides = _sides(engines, reference, llama_cpp, draw_requests(streams, rng))
            figures |= _compare(sides, streams, rng)
        if llama_cpp is not None:
            figures |= _compare_prefill(engine, llama_cpp, rng)
    for streams in LATE_STREAMS:
        figures |= _compare_late(engine, reference, streams, rng)
    figures["prefix_hit_share"] = prefix_hits.measure(engine)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    figures["gumbel_agreement"] = agreement.measure(engine, reference.float(), tokenizer)
    figures |= drafts.measure(model_dir, threads=THREADS)
    return figures


def _engine_of_codes() -> CausalLM | None:
    """With the codes of llama.cpp's file; None where that is not installed."""
    weights = gguf_file()
    if weights is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        convert_gguf_codes(weights.parent, Path(folder), on_bytes=lambda done, of: None)
        return CausalLM.load(Path(folder), slots=FEW_SLOTS, threads=THREADS, drafts=False)


def _sides(
    engines: Mapping[str, CausalLM],
    reference: Any,
    llama_cpp: LlamaCpp | None,
    unmeasured: Sequence[MixedRequest],
) -> dict[str, _Side]:
    """Each has answered requests like those to come once: kernels are compiled, memory is touched,
    and llama.cpp has the settings that suit it."""
    sides: dict[str, _Side] = {
        name: partial(answer_streams, engine) for name, engine in engines.items()
    }
    sides["generate"] = partial(_generate, reference)
    for side in sides.values():
        side(unmeasured)
    if llama_cpp is not None:
        sides["llama_cpp"] = llama_cpp.fastest_at(unmeasured).answer
    return sides


def _compare(sides: dict[str, _Side], streams: int, rng: random.Random) -> dict[str, float]:
    speeds: dict[str, list[StreamSpeed]] = {name: [] for name in sides}
    for number in _rounds(streams):
        requests = draw_requests(streams, rng)
        for name in sorted(sides, reverse=number % 2 == 1):
            speeds[name].append(sides[name](requests))
    figures = {
        f"{name}_tps_{streams}": statistics.median(speed.useful for speed in found)
        for name, found in speeds.items()
    }
    figures[f"generate_computed_tps_{streams}"] = statistics.median(
        speed.computed for speed in speeds["generate"]
    )
    pairs = list(zip(speeds["ours"], speeds["generate"], strict=True))
    figures[f"ratio_{streams}"] = statistics.median(ours.useful / his.useful for ours, his in pairs)
    figures[f"ratio_computed_{streams}"] = statistics.median(
        ours.useful / his.computed for ours, his in pairs
    )
    for name in speeds.keys() & {"ours", "int4"} if "llama_cpp" in speeds else ():
        prefix = "" if name == "ours" else f"{name}_"
        pairs = list(zip(speeds[name], speeds["llama_cpp"], strict=True))
        figures[f"{prefix}llama_cpp_ratio_{streams}"] = statistics.median(
            ours.useful / theirs.useful for ours, theirs in pairs
        )
        figures[f"{prefix}llama_cpp_cpu_ratio_{streams}"] = statistics.median(
            theirs.cpu_s / ours.cpu_s for ours, theirs in pairs
        )
    return figures


def _rounds(streams: int) -> Iterator[int]:
    began_s = time.perf_counter()
    for number in range(ROUNDS[streams]):
        if number and time.perf_counter() - began_s > BUDGET_S[streams] * number / (number + 1):
            return
        yield number


def _compare_prefill(engine: CausalLM, llama_cpp: LlamaCpp, rng: random.Random) -> dict[str, float]:
    """Prompts of one length, each new, up to the first token."""
    sides: dict[str, _Side] = {"ours": partial(answer_streams, engine)}
    sides["llama_cpp"] = llama_cpp.fastest_at(_prompt(rng)).answer
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(PREFILL_ROUNDS):
        for name in sorted(sides, reverse=number % 2 == 1):
            speeds[name].append(PREFILL_TOKENS * sides[name](_prompt(rng)).useful)
    pairs = zip(speeds["ours"], speeds["llama_cpp"], strict=True)
    return {
        **{f"{name}_prefill_tps": statistics.median(found) for name, found in speeds.items()},
        "prefill_ratio": statistics.median(ours / theirs for ours, theirs in pairs),
    }


def _prompt(rng: random.Random) -> list[MixedRequest]:
    return [MixedRequest(draw_tokens(PREFILL_TOKENS, rng), answer_tokens=1)]


def _compare_late(
    engine: CausalLM, reference: Any, streams: int, rng: random.Random
) -> dict[str, float]:
    """Requests that come by themselves, all with one arrival process for both."""
    generate = partial(_generate, reference)
    ratios: list[float] = []
    for number in range(LATE_ROUNDS):
        requests = draw_requests(streams, rng)
        asked = sum(request.answer_tokens for request in requests)
        batch_s = asked / generate(requests).useful
        arrivals_s = late_arrivals.arrival_times(streams, batch_s, rng)
        sides = {
            "ours": partial(late_arrivals.answer_as_they_come, engine),
            "generate": partial(late_arrivals.generate_as_they_come, generate),
        }
        speeds = {
            name: sides[name](requests, arrivals_s)
            for name in sorted(sides, reverse=number % 2 == 1)
        }
        ratios.append(speeds["ours"] / speeds["generate"])
    return {f"generate_ratio_{streams}": statistics.median(ratios)}


def _generate(model: Any, requests: Sequence[MixedRequest]) -> StreamSpeed:
    """One static batch, all requests there from the start."""
    longest = max(len(request.prompt) for request in requests)
    answer = max(request.answer_tokens for request in requests)
    ids = torch.zeros((len(requests), longest), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        ids[row, longest - len(request.prompt) :] = torch.tensor(request.prompt)
        mask[row, longest - len(request.prompt) :] = 1
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    answers = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=answer,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    spent_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
    assert answers.shape == (len(requests), longest + answer)
    useful = sum(request.answer_tokens for request in requests)
    return StreamSpeed(useful / spent_s, len(requests) * answer / spent_s, cpu_s / useful)
