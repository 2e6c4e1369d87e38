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
    "prediction": (),
    # Names of vLLM, SGLang, llama.cpp, TGI and of fine-tuning servers.
    "repeat_penalty": (1,),
    "length_penalty": (1,),
    "typical_p": (1,),
    "top_a": (0,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "min_tokens": (0,),
    "n_predict": (),
    "use_beam_search": (False,),
    "prompt_logprobs": (0,),
    "stop_token_ids": ([],),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": ({},),
    "grammar": ("",),
    "json_schema": ({},),
    "regex": (),
    "ebnf": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
}

# Clients look for these words.
NO_TOOLS = "this model does not support tools"
_TOOLS = ("tools", "tool_choice", "functions", "function_call")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, and when to stop."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: tuple[str, ...]
    ignore_eos: bool

    def to_arguments(self) -> dict[str, Any]:
        """As `GenerationInput` takes them."""
        return {
            "max_tokens": self.max_tokens,
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
    continuous_usage: bool = False


def read_sampling(fields: Fields, *, max_tokens_default: int = OUTPUT_TOKENS_DEFAULT) -> Sampling:
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
        max_tokens=max_tokens or max_tokens_default,
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
    if options is None:
        return Streaming(is_streamed, include_usage=False)
    continuous = bool(options.flag("continuous_usage_stats"))
    return Streaming(is_streamed, bool(options.flag("include_usage")), continuous)


def _check_unsupported(fields: Fields) -> None:
    """Raises ApiError (400) for what would change the answer, and that we cannot honour."""
    # Tools that the model must not use change nothing.
    is_without_tools = fields.raw("tool_choice") == "none"
    for name, neutral in _UNSUPPORTED.items():
        value = None if is_without_tools and name == "tools" else fields.raw(name)
        if value is None:
            continue
        # True equals 1 in Python, but a flag is not a number.
        kind = isinstance(value, bool)
        if not any(value == item and kind is isinstance(item, bool) for item in neutral):
            raise unsupported(
                NO_TOOLS if name in _TOOLS else f"{name} is not supported: leave it out", name
            )
