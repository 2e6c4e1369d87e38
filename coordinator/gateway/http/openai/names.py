"""Which parameters a request may name, and what becomes of the others.

What could change an answer is honoured or refused by its name; what cannot is ignored. A name that
no table has could do either, so it is refused: a client that means it would get another answer than
it asked for, and be charged for it.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from coordinator.gateway.errors import ApiError, unsupported
from coordinator.gateway.http.strict_json import Fields

# How an account is billed, watched and served, at OpenAI, OpenRouter, vLLM and llama.cpp, and what
# SDKs let through of their own settings. None of these changes what the model says.
IGNORED = frozenset(
    {
        "background",
        "betas",
        "cache",
        "cache_control",
        "cache_prompt",
        "caching",
        "client_metadata",
        "debug",
        "extra_headers",
        "extra_query",
        "frequency_cap",
        "guided_decoding_backend",
        "id_slot",
        "keep_alive",
        "kv_transfer_params",
        "litellm_call_id",
        "litellm_metadata",
        "litellm_params",
        "litellm_session_id",
        "litellm_trace_id",
        "max_retries",
        "metadata",
        "mock_timeout",
        "modalities_metadata",
        "num_retries",
        "prediction",
        "priority",
        "prompt_cache_options",
        "prompt_cache_retention",
        "request_id",
        "request_timeout",
        "return_progress",
        "route",
        "safety_identifier",
        "service_tier",
        "slot_id",
        "store",
        "tags",
        "timeout",
        "timings_per_token",
        "trace",
        "transforms",
        "usage",
        "user",
        "verbosity",
    }
)

# What every request for a job may say.
ROUTING_WORDS = {
    "model": "The model's name, or the digest of its manifest.",
    "models": "Models to try in this order where no node takes the job for `model`, or instead of "
    "it; the answer's `model` says which one did.",
    "provider": "Where the job may run and what it may cost: OpenRouter's object.",
    "session_id": "Requests of one session go to the node that has its cache, where it has room.",
    "prompt_cache_key": "OpenAI's name of `session_id`.",
}

# What would change the answer and is not honoured, with the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "chat_template": (),
    "documents": ([],),
    "dry_multiplier": (0,),
    "early_stopping": (False,),
    "grammar": ("",),
    "json_schema": ({},),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "media_io_kwargs": ({},),
    "mirostat": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "plugins": ([],),
    "prompt_logprobs": (),
    "repeat_penalty": (1,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "safe_prompt": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "top_a": (0,),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "web_search_options": (),
    "xtc_probability": (0,),
}


def check_names(
    fields: Fields,
    known: Mapping[str, str],
    *,
    neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL,
    ignored: frozenset[str] = IGNORED,
) -> None:
    """Raises ApiError (400) for a parameter that is not `known` and could change the answer.

    `known` maps each parameter that is read to a sentence about it.
    """
    for name in fields.unknown(known):
        if name in neutral:
            check_neutral(fields, name, neutral[name])
        elif name not in ignored:
            raise _unknown(name, known)


def check_neutral(fields: Fields, name: str, neutral: tuple[Any, ...]) -> None:
    """Raises ApiError (400) unless the value is null or one that changes nothing."""
    value = fields.raw(name)
    # True equals 1 in Python, but a flag is not a number.
    kind = isinstance(value, bool)
    is_neutral = any(value == item and kind is isinstance(item, bool) for item in neutral)
    if value is not None and not is_neutral:
        raise unsupported(f"{name} is not supported: leave it out", fields.path(name))


def _unknown(name: str, known: Mapping[str, str]) -> ApiError:
    meant = difflib.get_close_matches(name[:64], known, n=1, cutoff=0.8)
    hint = f"did you mean {meant[0]}?" if meant else "leave it out"
    return unsupported(f"{name} is not a parameter of this endpoint: {hint}", name)
