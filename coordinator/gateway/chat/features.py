"""What a generation needs of the model, and the refusal where no node of the model has it."""

from collections.abc import Iterator

from coordinator.gateway.errors import ApiError, unsupported
from protocol.features import Feature
from protocol.generation import GenerationInput, ToolChoice

# What an input must have to be answered as asked: the feature, what clients call it (their authors
# look for "does not support tools"), and OpenAI's name of the parameter.
_WORDS = {
    Feature.TOOLS: ("tools", "tools"),
    Feature.STRUCTURED_OUTPUTS: ("structured outputs", "response_format"),
    Feature.LOGPROBS: ("logprobs", "logprobs"),
    Feature.SAMPLING: ("penalties, min_p, logit_bias, min_tokens and stop_token_ids", None),
    Feature.TOKENIZE: ("tokenize", "model"),
    Feature.STOP_DETAILS: ("include_stop_str_in_output", "include_stop_str_in_output"),
    Feature.CHAT: ("chat: it has no chat template, so use /v1/completions", "messages"),
}

_SAMPLING_DEFAULTS = {
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": (),
    "min_tokens": 0,
    "stop_token_ids": (),
}


def features_of(job_input: GenerationInput) -> tuple[Feature, ...]:
    """What a node must be able to do. Plain chats need nothing that nodes have to list."""
    return tuple(_needed(job_input))


def _needed(job_input: GenerationInput) -> Iterator[Feature]:
    has_calls = any(m.tool_calls or m.role == "tool" for m in job_input.messages)
    if has_calls or (job_input.tools and job_input.tool_choice is not ToolChoice.NONE):
        yield Feature.TOOLS
    if job_input.format is not None or job_input.tool_choice is ToolChoice.REQUIRED:
        yield Feature.STRUCTURED_OUTPUTS
    if job_input.logprobs is not None or job_input.prompt_logprobs is not None:
        yield Feature.LOGPROBS
    if _changed_sampling(job_input) is not None:
        yield Feature.SAMPLING
    if job_input.includes_stop and job_input.stop:
        yield Feature.STOP_DETAILS
    if job_input.tokenizes_only:
        yield Feature.TOKENIZE


def _changed_sampling(job_input: GenerationInput) -> str | None:
    changed = (n for n, default in _SAMPLING_DEFAULTS.items() if getattr(job_input, n) != default)
    return next(changed, None)


def check_features(job_input: GenerationInput, model: str, known: frozenset[str]) -> None:
    """Raises ApiError (400) if no node of the model has what the input needs."""
    for feature in features_of(job_input):
        if feature not in known:
            raise _missing(job_input, model, feature)
    # Nodes of earlier versions list nothing, and may well chat.
    if job_input.messages and known and Feature.CHAT not in known:
        raise _missing(job_input, model, Feature.CHAT)


def _missing(job_input: GenerationInput, model: str, feature: Feature) -> ApiError:
    words, param = _WORDS[feature]
    return unsupported(
        f"{model} does not support {words}", param or _changed_sampling(job_input) or "model"
    )
