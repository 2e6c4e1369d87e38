"""What vLLM says of a request, read strictly: it is a large library, and a wrong word of it must
not become a wrong bill.

Of vLLM 0.33: `vllm.outputs.RequestOutput` with one `CompletionOutput`, in deltas.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capanode.engines.detokenize import TokenBytes
from protocol.generation import Alternative, TokenScore


class VllmFault(Exception):
    """vLLM said what it never should: it is not trusted any more, and its process ends."""


@dataclass(frozen=True, slots=True)
class VllmDelta:
    """What is new of one request. `scores` go with `tokens`, if any were asked for; `prompt` is
    the scores of the prompt, which come once. `end` is vLLM's word for how the request ended; None
    while it goes on."""

    tokens: tuple[int, ...]
    scores: tuple[TokenScore | None, ...]
    prompt: tuple[TokenScore, ...]
    cached_tokens: int
    end: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asked for: `logprobs` and `prompt_logprobs` are how many alternatives."""

    prompt: Sequence[int]
    logprobs: int | None
    prompt_logprobs: int | None


class OutputReader:
    """Reads the outputs of one model."""

    def __init__(self, pieces: TokenBytes, vocab: int) -> None:
        self._pieces, self._vocab = pieces, vocab

    def read(self, output: Any, wanted: Wanted) -> VllmDelta:
        """Raises VllmFault."""
        if len(output.outputs) != 1:
            raise VllmFault("a request has one answer")
        (completion,) = output.outputs
        tokens = tuple(completion.token_ids)
        for token in tokens:
            if type(token) is not int or not 0 <= token < self._vocab:
                raise VllmFault("a token is not of the vocabulary")
        end = completion.finish_reason
        if (end is not None) is not bool(output.finished):
            raise VllmFault("a request has ended and has not")
        return VllmDelta(
            tokens,
            self._scores(tokens, completion.logprobs, wanted.logprobs),
            self._prompt_scores(output.prompt_logprobs, wanted),
            output.num_cached_tokens or 0,
            None if end is None else str(end),
        )

    def _scores(
        self, tokens: Sequence[int], logprobs: Any, alternatives: int | None
    ) -> tuple[TokenScore | None, ...]:
        if alternatives is None:
            return (None,) * len(tokens)
        if len(logprobs or ()) != len(tokens):
            raise VllmFault("not one score for each token")
        pairs = zip(tokens, logprobs or (), strict=True)
        return tuple(self._score(token, found, alternatives) for token, found in pairs)

    def _prompt_scores(self, logprobs: Any, wanted: Wanted) -> tuple[TokenScore, ...]:
        if wanted.prompt_logprobs is None or logprobs is None:
            return ()
        if len(logprobs) != len(wanted.prompt) or logprobs[0] is not None:
            raise VllmFault("not one score for each token of the prompt")
        first = wanted.prompt[0]
        pairs = zip(wanted.prompt[1:], logprobs[1:], strict=True)
        return (
            TokenScore(first, self._pieces.spelled(first), 0.0),
            *(self._score(token, found, wanted.prompt_logprobs) for token, found in pairs),
        )

    def _score(self, token: int, found: Mapping[int, Any], alternatives: int) -> TokenScore:
        """vLLM counts ranks from 1, and has the token itself among the alternatives."""
        own = found.get(token)
        if own is None or own.rank is None or own.rank < 1:
            raise VllmFault("the score of a token is missing")
        ranked = sorted((one.rank, other) for other, one in found.items() if one.rank is not None)
        top = [other for rank, other in ranked if rank <= alternatives][:alternatives]
        return TokenScore(
            token,
            self._pieces.spelled(token),
            _finite(own.logprob),
            own.rank - 1,
            tuple(
                Alternative(other, self._pieces.spelled(other), _finite(found[other].logprob))
                for other in top
            ),
        )


def _finite(logprob: float) -> float:
    if not math.isfinite(logprob):
        raise VllmFault("a score is no number")
    return float(logprob)
