"""The parameters that chat and completions share: how tokens are chosen, and how they arrive."""

from dataclasses import dataclass
from typing import Any

from coordinator.gateway.errors import invalid, unsupported
from coordinator.gateway.http.strict_json import Fields
from coordinator.gateway.orders import OUTPUT_TOKENS_DEFAULT
from protocol.limits import STOP_CHARS_MAX, STOP_STRINGS_MAX, TOKENS_MAX

# Seeds on the wire are not negative; OpenAI's may be, and must still give one answer each.
_SEED_RANGE = 2**63

# Parameters that change the answer and that no engine of ours honours, with the values that mean
# "leave it out". To ignore one of these in silence would be to give a wrong answer.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "models": ([],),
    "echo": (False,),
    "suffix": ("",),
    "min_p": (0,),
    "repetition_penalty": (1,),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, and when to stop; `max_tokens` is None where the request has none."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: tuple[str, ...]
    ignore_eos: bool

    def to_arguments(self) -> dict[str, Any]:
        """As `GenerationInput` takes them."""
        return {
            "max_tokens": self.max_tokens or OUTPUT_TOKENS_DEFAULT,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "stop": self.stop,
            "ignore_eos": self.ignore_eos,
        }


@dataclass(frozen=True, slots=True)
class Streaming:
    """How the answer shall arrive."""

    is_streamed: bool
    include_usage: bool


def read_sampling(fields: Fields) -> Sampling:
    """Raises ApiError (400)."""
    _check_unsupported(fields)
    max_tokens = fields.integer("max_completion_tokens", low=1, high=TOKENS_MAX)
    if max_tokens is None:
        max_tokens = fields.integer("max_tokens", low=1, high=TOKENS_MAX)
    temperature = fields.number("temperature", low=0, high=2)
    top_p = fields.number("top_p", low=0, high=1)
    if top_p == 0:
        raise invalid("top_p lies above 0 and up to 1", "top_p")
    # vLLM writes -1 for "all tokens", others 0.
    top_k = fields.integer("top_k", low=-1, high=TOKENS_MAX)
    seed = fields.integer("seed", low=-_SEED_RANGE, high=_SEED_RANGE - 1)
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        top_k=max(0, top_k or 0),
        seed=None if seed is None else seed % _SEED_RANGE,
        stop=fields.texts("stop", items_max=STOP_STRINGS_MAX, chars_max=STOP_CHARS_MAX),
        ignore_eos=bool(fields.flag("ignore_eos")),
    )


def read_streaming(fields: Fields) -> Streaming:
    """Raises ApiError (400)."""
    is_streamed = bool(fields.flag("stream"))
    options = fields.fields("stream_options")
    if options is not None and not is_streamed:
        raise invalid("stream_options is for streams: set stream to true", "stream_options")
    return Streaming(is_streamed, options is not None and bool(options.flag("include_usage")))


def _check_unsupported(fields: Fields) -> None:
    """Raises ApiError (400) for what would change the answer, and that we cannot honour."""
    for name, neutral in _UNSUPPORTED.items():
        value = fields.raw(name)
        if value is None:
            continue
        # True equals 1 in Python, but a flag is not a number.
        kind = isinstance(value, bool)
        if not any(value == item and kind is isinstance(item, bool) for item in neutral):
            raise unsupported(f"{name} is not supported by this market: leave it out", name)
