"""What a job asks for, in the words of vLLM's `SamplingParams` (0.33). Pure: vLLM is not needed.

vLLM chooses tokens and says no more: text, stop strings, ends and counts are ours. Where its
sampler differs from `gumbel-1` of docs/protocol.md: the noise is its own; a bias is added before
penalties and not after them; a temperature below 0.01 counts as 0.01.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from capanode.engines.base import EngineRefusal
from capanode.engines.generation import Generation
from protocol.errors import Code
from protocol.generation import SEED_MAX, GenerationInput


def sampling_fields(job: Generation, job_input: GenerationInput, vocab: int) -> Mapping[str, Any]:
    """The fields that matter to vLLM's sampler; the others keep its defaults.

    Raises EngineRefusal (MODEL_UNAVAILABLE) for what only other engines do.
    """
    _check_continues(job, job_input)
    tokens_max = job.tokens_max - len(job.tokens)
    return {
        "temperature": job_input.temperature,
        "top_p": job_input.top_p,
        "top_k": job_input.top_k,
        "min_p": job_input.min_p,
        "seed": _seed(job.sampling.seed, job.prefix_count),
        "presence_penalty": job_input.presence_penalty,
        "frequency_penalty": job_input.frequency_penalty,
        "repetition_penalty": job_input.repetition_penalty,
        "logit_bias": _biases(job_input, vocab),
        "max_tokens": tokens_max,
        "min_tokens": min(tokens_max, max(0, job_input.min_tokens - job.prefix_count)),
        # One list of what ends an answer. The end-of-text tokens that are wanted are in it.
        "stop_token_ids": sorted(job.end_tokens),
        "ignore_eos": True,
        "logprobs": job.logprobs,
        "prompt_logprobs": job.prompt_logprobs,
    }


def _check_continues(job: Generation, job_input: GenerationInput) -> None:
    """To vLLM an answer that goes on is part of the prompt, which these two do not count."""
    if job.prefix_count and (job_input.presence_penalty or job_input.frequency_penalty):
        raise EngineRefusal(
            "an answer with penalties cannot be continued by this engine",
            code=Code.MODEL_UNAVAILABLE,
        )


def _seed(seed: int, prefix_count: int) -> int:
    """Another one for each part of an answer: with the same one, an answer that goes on would meet
    the noise of its first tokens again."""
    if not prefix_count:
        return seed
    digest = hashlib.sha256(f"{seed} {prefix_count}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & SEED_MAX


def _biases(job_input: GenerationInput, vocab: int) -> dict[int, float] | None:
    """Of one token all are added up. Tokens beyond the vocabulary, which vLLM refuses, are none."""
    biases: dict[int, float] = {}
    for item in job_input.logit_bias:
        if item.token_id < vocab:
            biases[item.token_id] = biases.get(item.token_id, 0.0) + item.bias
    return biases or None
