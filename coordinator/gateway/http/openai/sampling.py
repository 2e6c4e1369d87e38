"""The parameters that chat and completions share: how tokens are chosen, and how they arrive."""

from dataclasses import dataclass
from typing import Any

from coordinator.gateway.errors import invalid
from coordinator.gateway.http.openai.formats import FORMAT_WORDS, read_format
from coordinator.gateway.http.openai.names import ROUTING_WORDS, check_neutral
from coordinator.gateway.http.strict_json import Fields, read_list
from coordinator.gateway.orders import OUTPUT_TOKENS_DEFAULT
from protocol.generation import SEED_MAX, TOKEN_ID_MAX, TokenBias
from protocol.limits import (
    LOGIT_BIASES_MAX,
    NAME_CHARS_MAX,
    STOP_CHARS_MAX,
    STOP_STRINGS_MAX,
    STOP_TOKENS_MAX,
    TOKENS_MAX,
)

# Each is a job of its own, and is paid like one.
CHOICES_MAX = 8

# Seeds on the wire are not negative; OpenAI's may be, and must still give one answer each.
_SEED_RANGE = SEED_MAX + 1

# Clients say "as much as possible" with -1, or with the largest number that they know.
_UNLIMITED = -1
_INTEGER_MAX = 2**63 - 1

# The narrowest nucleus that the wire can say: of any two tokens it holds the likelier one.
_TOP_P_MIN = 1e-9

SAMPLING_WORDS = {
    **ROUTING_WORDS,
    **FORMAT_WORDS,
    "max_tokens": "The most tokens that the answer may have. More than the model's context leaves "
    "is lowered to that; -1 asks for all of it.",
    "temperature": "How far the choice of tokens spreads; 0 always takes the likeliest. Default 1.",
    "top_p": "Choose among the likeliest tokens that have this probability together; 0 takes the "
    "likeliest. Default 1.",
    "top_k": "Choose among so many of the likeliest tokens; 0 or -1 is no limit.",
    "min_p": "Leave out tokens with less than this part of the likeliest one's probability.",
    "presence_penalty": "Taken from the logits of tokens that the answer has.",
    "frequency_penalty": "Taken from a token's logit for each time that the answer has it.",
    "repetition_penalty": "Divides the logits of tokens that the prompt or the answer has.",
    "logit_bias": "Added to the logits of tokens, by token id.",
    "seed": "Makes the answer repeatable. Choices after the first count on from it.",
    "stop": "Texts that end the answer; it ends before them.",
    "include_stop_str_in_output": "End the answer after the text of `stop`, and not before it.",
    "stop_token_ids": "Token ids that end the answer.",
    "min_tokens": "The answer does not end before it has so many tokens.",
    "ignore_eos": "Go on where the model would end.",
    "n": "So many answers. Each is a job, which reads the prompt and is charged for it.",
    "best_of": "1, or the same as n.",
    "cache_salt": "Only prompts with the same text here profit from each other's beginnings.",
    "share_cache": "Let prompts of other accounts profit from this one's beginning, and the other "
    "way round, where they say the same and have the same cache_salt.",
    "stream": "Send the answer as server-sent events while it is made.",
    "stream_options": "`include_usage`: end with the counts. `continuous_usage_stats`: count in "
    "every event.",
}


@dataclass(frozen=True, slots=True)
class Streaming:
    """How the answer shall arrive."""

    is_streamed: bool
    include_usage: bool
    continuous_usage: bool = False


def read_sampling(
    fields: Fields,
    *,
    length_names: tuple[str, ...] = ("max_tokens",),
    max_tokens_default: int = OUTPUT_TOKENS_DEFAULT,
) -> dict[str, Any]:
    """What `GenerationInput` takes of how tokens are chosen; of `length_names` the first that is
    given counts. Raises ApiError (400)."""
    top_p = fields.number("top_p", low=0, high=1)
    # vLLM writes -1 for "all tokens", others 0.
    top_k = fields.integer("top_k", low=-1, high=TOKENS_MAX)
    seed = fields.integer("seed", low=-_SEED_RANGE, high=SEED_MAX)
    max_tokens = _read_max_tokens(fields, length_names)
    min_tokens = fields.integer("min_tokens", low=0, high=TOKENS_MAX)
    if max_tokens is not None and (min_tokens or 0) > max_tokens:
        raise invalid(f"min_tokens is more than {length_names[0]}", "min_tokens")
    read = {
        "max_tokens": max_tokens or max_tokens_default,
        "min_tokens": min_tokens,
        "temperature": fields.number("temperature", low=0, high=2),
        "top_p": None if top_p is None else max(_TOP_P_MIN, top_p),
        "top_k": None if top_k is None else max(0, top_k),
        "min_p": fields.number("min_p", low=0, high=1),
        "presence_penalty": fields.number("presence_penalty", low=-2, high=2),
        "frequency_penalty": fields.number("frequency_penalty", low=-2, high=2),
        "repetition_penalty": _read_repetition_penalty(fields),
        "logit_bias": _read_biases(fields),
        "seed": None if seed is None else seed % _SEED_RANGE,
        "stop": fields.texts("stop", items_max=STOP_STRINGS_MAX, chars_max=STOP_CHARS_MAX),
        "includes_stop": fields.flag("include_stop_str_in_output"),
        "stop_token_ids": _read_stop_tokens(fields),
        "ignore_eos": fields.flag("ignore_eos"),
        "format": read_format(fields),
        "cache_salt": _read_salt(fields),
        "shares_cache": fields.flag("share_cache"),
    }
    return {name: value for name, value in read.items() if value is not None}


def _read_salt(fields: Fields) -> str | None:
    is_given = fields.raw("cache_salt") is not None
    return fields.text("cache_salt", chars_max=NAME_CHARS_MAX) if is_given else None


def read_choices(fields: Fields) -> int:
    """How many answers are wanted. Raises ApiError (400)."""
    choices = fields.integer("n", low=1, high=CHOICES_MAX) or 1
    check_neutral(fields, "best_of", (1, choices))
    return choices


def read_streaming(fields: Fields) -> Streaming:
    """Raises ApiError (400)."""
    is_streamed = bool(fields.flag("stream"))
    options = fields.fields("stream_options")
    if options is None:
        return Streaming(is_streamed, include_usage=False)
    if not is_streamed:
        raise invalid("stream_options is for streams: set stream to true", "stream_options")
    continuous = bool(options.flag("continuous_usage_stats"))
    return Streaming(is_streamed, bool(options.flag("include_usage")) or continuous, continuous)


def _read_max_tokens(fields: Fields, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = fields.integer(name, low=_UNLIMITED, high=_INTEGER_MAX)
        if value == 0:
            raise invalid(f"{name} is at least 1, or {_UNLIMITED} for no limit", name)
        if value is not None:
            return TOKENS_MAX if value == _UNLIMITED else min(value, TOKENS_MAX)
    return None


def _read_repetition_penalty(fields: Fields) -> float | None:
    penalty = fields.number("repetition_penalty", low=0, high=10)
    if penalty == 0:
        raise invalid("repetition_penalty lies above 0 and up to 10", "repetition_penalty")
    return penalty


def _read_biases(fields: Fields) -> tuple[TokenBias, ...]:
    biases = fields.fields("logit_bias")
    if biases is None:
        return ()
    names = list(fields.raw("logit_bias"))
    if len(names) > LOGIT_BIASES_MAX:
        raise invalid(f"logit_bias has at most {LOGIT_BIASES_MAX} tokens", "logit_bias")
    return tuple(_read_bias(biases, name) for name in names)


def _read_bias(biases: Fields, name: str) -> TokenBias:
    path = biases.path(name[:32])
    if not (name.isascii() and name.isdecimal() and len(name) <= 10 and int(name) <= TOKEN_ID_MAX):
        raise invalid(f"{path}: a token id is a whole number from 0 to {TOKEN_ID_MAX}", path)
    bias = biases.number(name, low=-100, high=100)
    if bias is None:
        raise invalid(f"{path} must be a number", path, code="invalid_type")
    return TokenBias(int(name), bias)


def _read_stop_tokens(fields: Fields) -> tuple[int, ...]:
    value = fields.raw("stop_token_ids")
    if value is None:
        return ()
    return read_list(value, "stop_token_ids", items_max=STOP_TOKENS_MAX, read=read_token_id)


def read_token_id(value: Any, path: str) -> int:
    if type(value) is not int or not 0 <= value <= TOKEN_ID_MAX:
        raise invalid(f"{path}: a token id is a whole number from 0 to {TOKEN_ID_MAX}", path)
    return value
