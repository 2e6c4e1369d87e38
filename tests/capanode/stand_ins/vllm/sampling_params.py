"""The settings of one request, checked as vLLM 0.33.0 checks them."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from vllm.exceptions import VLLMValidationError


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: Any = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    extra_args: dict[str, Any] | None = None
    bad_words: list[str] | None = None

    def __post_init__(self) -> None:
        bounds = (
            (-2.0 <= self.presence_penalty <= 2.0, "presence_penalty"),
            (-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty"),
            (self.repetition_penalty > 0.0, "repetition_penalty"),
            (0.0 <= self.temperature <= 2.0, "temperature"),
            (0.0 < self.top_p <= 1.0, "top_p"),
            (self.top_k >= -1, "top_k"),
            (0.0 <= self.min_p <= 1.0, "min_p"),
            (self.max_tokens is None or self.max_tokens >= 1, "max_tokens"),
            (self.max_tokens is None or 0 <= self.min_tokens <= self.max_tokens, "min_tokens"),
            (not self.stop or self.detokenize, "stop"),
        )
        for holds, name in bounds:
            if not holds:
                raise VLLMValidationError(f"{name} is out of range", parameter=name)
