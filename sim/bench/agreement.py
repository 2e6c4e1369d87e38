"""How often an honest answer of our engine is what its seed decides, as a later check would see it.

The engine answers in bfloat16, in batches. A float32 model then scores each answer in one prefill,
and the sampler `gumbel-1` chooses again from those logits with the same seed and places.
"""

import random
from typing import Any

import torch

from capanode.engines.base import Produced
from capanode.engines.causal_lm import CausalLM
from capanode.engines.sampling import SamplingParameters, choose_tokens
from protocol.generation import GenerationInput

_ANSWERS = 24
_ANSWER_TOKENS = 64
_AT_ONCE = 8
_TEMPERATURE = 0.8
_SEED = 11

_TOPICS = ("the sea", "a bridge", "rain", "an old clock", "bread", "a market", "the moon", "maps")
_ASKS = ("Write about {}.", "Explain {} to a child.", "What is there to know about {}?")


def measure(engine: CausalLM, reference: Any, tokenizer: Any) -> float:
    """The share of tokens that agree. `reference` is a transformers model in float32."""
    rng = random.Random(_SEED)
    asked = []
    for number in range(_ANSWERS):
        text = rng.choice(_ASKS).format(_TOPICS[number % len(_TOPICS)])
        chat = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        asked.append(
            GenerationInput(
                max_tokens=_ANSWER_TOKENS,
                prompt_tokens=tuple(prompt),
                temperature=_TEMPERATURE,
                ignore_eos=True,
                seed=rng.getrandbits(62),
            )
        )
    answers = [
        answer
        for start in range(0, _ANSWERS, _AT_ONCE)
        for answer in _answer(engine, asked[start : start + _AT_ONCE])
    ]
    pairs = zip(asked, answers, strict=True)
    agreed = sum(_agreed(reference, job_input, answer) for job_input, answer in pairs)
    return agreed / sum(map(len, answers))


def _answer(engine: CausalLM, asked: list[GenerationInput]) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in asked]
    for number, job_input in enumerate(asked):
        engine.submit(str(number), job_input)
    while not engine.is_idle:
        for event in engine.step():
            if isinstance(event, Produced):
                answers[int(event.job_id)] += event.token_ids
    return answers


@torch.inference_mode()
def _agreed(reference: Any, job_input: GenerationInput, answer: list[int]) -> int:
    ids = torch.tensor([[*job_input.prompt_tokens, *answer]])
    first = len(job_input.prompt_tokens) - 1
    logits = reference(ids).logits[0, first : first + len(answer)]
    wanted = SamplingParameters(_TEMPERATURE, 1.0, 0, job_input.seed or 0)
    again = choose_tokens(logits.contiguous(), [wanted] * len(answer), range(len(answer)))
    return sum(one == other for one, other in zip(answer, again, strict=True))
