"""How soon a prompt is answered whose beginning the engine has seen, against one that is new.

The prompts are turns of a conversation: a long beginning, and a question of a line or two. A hit
and a miss alternate, so that a noisy moment favours neither; the share is the median over pairs.
"""

import random
import statistics
import time
from collections.abc import Sequence

from capanode.engines.base import Produced
from capanode.engines.causal_lm import CausalLM
from protocol.generation import GenerationInput

BEGINNING_TOKENS = 1_500
QUESTION_TOKENS = 40
PAIRS = 4

_SEED = 11
_ORDINARY_TOKENS = (1_000, 40_000)  # No special ones.


def measure(engine: CausalLM) -> float:
    """Time to first token on a hit, as a share of that on a miss."""
    rng = random.Random(_SEED)
    shares: list[float] = []
    for _ in range(PAIRS):
        beginning = _tokens(BEGINNING_TOKENS, rng)
        miss_s = _first_token_s(engine, beginning + _tokens(QUESTION_TOKENS, rng))
        hit_s = _first_token_s(engine, beginning + _tokens(QUESTION_TOKENS, rng))
        shares.append(hit_s / miss_s)
    return statistics.median(shares)


def _tokens(count: int, rng: random.Random) -> list[int]:
    return [rng.randrange(*_ORDINARY_TOKENS) for _ in range(count)]


def _first_token_s(engine: CausalLM, prompt: Sequence[int]) -> float:
    job_input = GenerationInput(
        max_tokens=1, prompt_tokens=tuple(prompt), temperature=0.0, ignore_eos=True
    )
    began_s = time.perf_counter()
    engine.submit("job", job_input)
    while not engine.is_idle:
        if any(isinstance(event, Produced) for event in engine.step()):
            return time.perf_counter() - began_s
    raise AssertionError("a job ends with a token")
