"""transformers' continuous batching on the same weights, all requests there from the start."""

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.utils.logging import disable_progress_bar

from sim.bench.gpu_engine import Cell

_CPU_BLOCKS, _CPU_BATCH_TOKENS = 16, 64


def continuous_batching_tps(model_dir: Path, device: str, cell: Cell, answer_tokens: int) -> float:
    """Output tokens per second, prompts read in the same time; no answer ends early."""
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).to(device)
    prompts = [
        [(7 * row + place) % 250 for place in range(cell.context)] for row in range(cell.rows)
    ]
    settings = GenerationConfig(
        max_new_tokens=answer_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    # On a processor it would take most of the machine's memory for its cache.
    few: dict[str, Any] = {}
    if device == "cpu":
        few["continuous_batching_config"] = ContinuousBatchingConfig(
            num_blocks=_CPU_BLOCKS, max_batch_tokens=_CPU_BATCH_TOKENS
        )
    model.generate_batch(inputs=prompts[:2], generation_config=settings, **few)  # unmeasured
    began_s = time.perf_counter()
    answers = model.generate_batch(inputs=prompts, generation_config=settings, **few)
    spent_s = time.perf_counter() - began_s
    return sum(len(answer.generated_tokens) for answer in answers.values()) / spent_s
