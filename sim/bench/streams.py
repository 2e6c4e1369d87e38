"""Requests of mixed lengths, and how fast our engine answers them as they come."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from capanode.engines.base import Produced
from capanode.engines.causal_lm import CausalLM
from protocol.generation import GenerationInput

# Prompts of a line or two of chat, answers of a paragraph.
PROMPT_TOKENS = (16, 96)
ANSWER_TOKENS = (24, 64)

# A new request comes with every second step of the engine, so at 32 streams the last one comes
# when the first answers have ended.
STEPS_BETWEEN_ARRIVALS = 2

ORDINARY_TOKENS = (1_000, 40_000)  # No special ones.


@dataclass(frozen=True, slots=True)
class MixedRequest:
    prompt: tuple[int, ...]
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class StreamSpeed:
    """Tokens per second: those asked for, and all that were computed. `cpu_s` is the processors'
    time for one token that was asked for."""

    useful: float
    computed: float
    cpu_s: float


def draw_requests(count: int, rng: random.Random) -> list[MixedRequest]:
    """Lengths spread evenly over their ranges, in random order."""
    return [
        MixedRequest(draw_tokens(length, rng), answer)
        for length, answer in zip(
            _spread(PROMPT_TOKENS, count, rng), _spread(ANSWER_TOKENS, count, rng), strict=True
        )
    ]


def draw_tokens(count: int, rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randrange(*ORDINARY_TOKENS) for _ in range(count))


def greedy_input(request: MixedRequest) -> GenerationInput:
    return GenerationInput(
        max_tokens=request.answer_tokens,
        prompt_tokens=request.prompt,
        temperature=0.0,
        ignore_eos=True,
    )


def answer_streams(engine: CausalLM, requests: Sequence[MixedRequest]) -> StreamSpeed:
    """From the first arrival to the last token."""
    waiting = list(enumerate(requests))[::-1]
    tokens = steps = 0
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    while waiting or not engine.is_idle:
        if waiting and (steps % STEPS_BETWEEN_ARRIVALS == 0 or engine.is_idle):
            number, request = waiting.pop()
            engine.submit(str(number), greedy_input(request))
        tokens += produced_tokens(engine)
        steps += 1
    spent_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
    assert tokens == sum(request.answer_tokens for request in requests)
    return StreamSpeed(tokens / spent_s, tokens / spent_s, cpu_s / tokens)


def produced_tokens(engine: CausalLM) -> int:
    """How many tokens one step of the engine gives."""
    return sum(len(event.token_ids) for event in engine.step() if isinstance(event, Produced))


def _spread(bounds: tuple[int, int], count: int, rng: random.Random) -> list[int]:
    low, high = bounds
    lengths = [low + round((high - low) * (number + 0.5) / count) for number in range(count)]
    rng.shuffle(lengths)
    return lengths
