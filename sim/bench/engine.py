"""Our generation engine against transformers' `generate` (eager, bfloat16) on the same weights.

With several streams ours gets the requests one after another while it already works, `generate` all
of them at once as a static batch, left-padded, which is the better case for it. Lengths of prompts
and answers differ. Only tokens that a client asked for count: a static batch computes every answer
to the length of the longest, and its surplus is shown as a figure of its own (`computed`).

Rounds of both alternate, each round with other prompts, so that a noisy moment or a warm cache
favours neither. A ratio is the median over rounds of the two speeds measured next to each other.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from capanode.engines.base import Produced
from capanode.engines.causal_lm import CausalLM
from capanode.models.catalog import load_catalog
from capanode.models.library import ensure
from capanode.models.store import ModelStore
from protocol.generation import GenerationInput
from sim.bench import agreement, prefix_hits

DEFAULT_STORE = Path(".capacloud/models")
MODEL = "smollm2-135m-instruct"
SLOTS = 32
THREADS = 2

# Prompts of a line or two of chat, answers of a paragraph.
PROMPT_TOKENS = (16, 96)
ANSWER_TOKENS = (24, 64)

# A machine that is busy takes several times longer: then fewer rounds must do.
ROUNDS = {1: 8, 8: 4, 32: 3}
BUDGET_S = {1: 8.0, 8: 11.0, 32: 20.0}

# A new request comes with every second step of the engine, so at 32 streams the last one comes
# when the first answers have ended.
STEPS_BETWEEN_ARRIVALS = 2

_SEED = 7
_ORDINARY_TOKENS = (1_000, 40_000)  # No special ones.


@dataclass(frozen=True, slots=True)
class _Request:
    prompt: tuple[int, ...]
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class _Speed:
    """Tokens per second: those asked for, and all that were computed."""

    useful: float
    computed: float


_Side = Callable[[Sequence[_Request]], _Speed]


def run(store: Path = DEFAULT_STORE) -> dict[str, float]:
    """Figures in tokens per second; `ratio_N` is ours to theirs at N streams. `prefix_hit_share` is
    the time to the first token where a prompt's beginning is known to that where it is new.
    `gumbel_agreement` is the share of our tokens that a float32 model and the same seed choose too.
    """
    model_dir = ensure(ModelStore(store), load_catalog(), MODEL).path
    engine = CausalLM.load(model_dir, slots=SLOTS, threads=THREADS)
    reference = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    sides: dict[str, _Side] = {
        "ours": lambda requests: _ours(engine, requests),
        "generate": lambda requests: _generate(reference, requests),
    }
    rng = random.Random(_SEED)
    for side in sides.values():  # Once unmeasured: kernels are compiled, memory is touched.
        side(_requests(2, rng))
    figures: dict[str, float] = {}
    for streams in ROUNDS:
        figures |= _compare(sides, streams, rng)
    figures["prefix_hit_share"] = prefix_hits.measure(engine)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    figures["gumbel_agreement"] = agreement.measure(engine, reference.float(), tokenizer)
    return figures


def _compare(sides: dict[str, _Side], streams: int, rng: random.Random) -> dict[str, float]:
    speeds: dict[str, list[_Speed]] = {name: [] for name in sides}
    for number in _rounds(streams):
        requests = _requests(streams, rng)
        for name in sorted(sides, reverse=number % 2 == 1):
            speeds[name].append(sides[name](requests))
    pairs = list(zip(speeds["ours"], speeds["generate"], strict=True))
    return {
        f"ours_tps_{streams}": statistics.median(speed.useful for speed in speeds["ours"]),
        f"generate_tps_{streams}": statistics.median(speed.useful for speed in speeds["generate"]),
        f"generate_computed_tps_{streams}": statistics.median(
            speed.computed for speed in speeds["generate"]
        ),
        f"ratio_{streams}": statistics.median(ours.useful / his.useful for ours, his in pairs),
        f"ratio_computed_{streams}": statistics.median(
            ours.useful / his.computed for ours, his in pairs
        ),
    }


def _rounds(streams: int) -> Iterator[int]:
    began_s = time.perf_counter()
    for number in range(ROUNDS[streams]):
        if number and time.perf_counter() - began_s > BUDGET_S[streams] * number / (number + 1):
            return
        yield number


def _requests(count: int, rng: random.Random) -> list[_Request]:
    """Lengths spread evenly over their ranges, in random order."""
    return [
        _Request(
            prompt=tuple(rng.randrange(*_ORDINARY_TOKENS) for _ in range(length)),
            answer_tokens=answer,
        )
        for length, answer in zip(
            _spread(PROMPT_TOKENS, count, rng), _spread(ANSWER_TOKENS, count, rng), strict=True
        )
    ]


def _spread(bounds: tuple[int, int], count: int, rng: random.Random) -> list[int]:
    low, high = bounds
    lengths = [low + round((high - low) * (number + 0.5) / count) for number in range(count)]
    rng.shuffle(lengths)
    return lengths


def _ours(engine: CausalLM, requests: Sequence[_Request]) -> _Speed:
    """From the first arrival to the last token."""
    waiting = list(enumerate(requests))[::-1]
    tokens = steps = 0
    began_s = time.perf_counter()
    while waiting or not engine.is_idle:
        if waiting and (steps % STEPS_BETWEEN_ARRIVALS == 0 or engine.is_idle):
            number, request = waiting.pop()
            job_input = GenerationInput(
                max_tokens=request.answer_tokens,
                prompt_tokens=request.prompt,
                temperature=0.0,
                ignore_eos=True,
            )
            engine.submit(str(number), job_input)
        events = engine.step()
        tokens += sum(len(event.token_ids) for event in events if isinstance(event, Produced))
        steps += 1
    speed = tokens / (time.perf_counter() - began_s)
    assert tokens == sum(request.answer_tokens for request in requests)
    return _Speed(speed, speed)


def _generate(model: Any, requests: Sequence[_Request]) -> _Speed:
    """One static batch, all requests there from the start."""
    longest = max(len(request.prompt) for request in requests)
    answer = max(request.answer_tokens for request in requests)
    ids = torch.zeros((len(requests), longest), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        ids[row, longest - len(request.prompt) :] = torch.tensor(request.prompt)
        mask[row, longest - len(request.prompt) :] = 1
    began_s = time.perf_counter()
    answers = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=answer,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    spent_s = time.perf_counter() - began_s
    assert answers.shape == (len(requests), longest + answer)
    useful = sum(request.answer_tokens for request in requests)
    return _Speed(useful / spent_s, len(requests) * answer / spent_s)
