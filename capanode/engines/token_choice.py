"""The next token of every job after a pass of the model, with its score where one is wanted."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from capanode.engines.base import Produced
from capanode.engines.detokenize import TokenBytes
from capanode.engines.exact_logits import ExactLogits
from capanode.engines.gaps import signed_gap
from capanode.engines.generation import Generation
from capanode.engines.sampling import choose_tokens
from capanode.engines.scores import prompt_blocks, score_tokens
from protocol.generation import TokenScore

# A prompt's logits, in float32, are made for so many tokens at a time: 8 MB for 64,000 words.
_SCORED_AT_ONCE = 32


class HasHead(Protocol):
    """What makes logits of what it kept of a prompt."""

    def logits(self, hidden: Tensor) -> tuple[Tensor, ExactLogits | None]: ...


def choose_next(jobs: Sequence[Generation], logits: Tensor, exact: ExactLogits | None) -> list[int]:
    """One token for each job from its row of `logits` [n, vocab], which stay as they are; `exact`
    says what rounding took from them."""
    ruled = [row for row, job in enumerate(jobs) if job.rules is not None]
    if not ruled:
        return _draw(jobs, logits, exact)
    tokens: dict[int, int] = {}
    free = [row for row, job in enumerate(jobs) if job.rules is None]
    if free:
        tokens |= zip(free, _draw_of(free, jobs, logits[free], exact), strict=True)
    changed = logits[ruled].float()
    for place, row in enumerate(ruled):
        rules = jobs[row].rules
        assert rules is not None
        rules.apply(changed[place])
    tokens |= zip(ruled, _draw_of(ruled, jobs, changed, exact), strict=True)
    return [tokens[row] for row in range(len(jobs))]


def score_next(
    jobs: Sequence[Generation], logits: Tensor, tokens: Sequence[int], pieces: TokenBytes
) -> list[TokenScore | None]:
    """The scores of the chosen tokens; None for jobs that want none."""
    scores: list[TokenScore | None] = [None] * len(jobs)
    for row, job in enumerate(jobs):
        if job.logprobs is not None:
            one = slice(row, row + 1)
            (scores[row],) = score_tokens(logits[one], tokens[one], job.logprobs, pieces)
    return scores


def score_prompt(
    job: Generation, start: int, hidden: Tensor, model: HasHead, pieces: TokenBytes
) -> Iterator[Produced]:
    """The scores that a chunk of a prompt gives: those of the tokens after each of its own, which
    begin at `start`. `hidden` is what the model kept of it."""
    alternatives = job.prompt_logprobs
    assert alternatives is not None
    scores = [TokenScore(job.tokens[0], pieces.spelled(job.tokens[0]), 0.0)] if not start else []
    end = min(start + len(hidden) + 1, job.input_count)
    for at in range(0, len(hidden), _SCORED_AT_ONCE):
        first = start + at + 1
        tokens = job.tokens[first : min(first + _SCORED_AT_ONCE, end)]
        if tokens:
            logits, exact = model.logits(hidden[at : at + len(tokens)])
            found = score_tokens(logits, tokens, alternatives, pieces)
            scores += _with_gaps(job, first, found, logits, exact) if job.scores_prefix else found
    job.scored = start + len(hidden) + 1
    for block in prompt_blocks(scores, alternatives):
        produced = job.take_prompt_scores(block)
        if produced is not None:
            yield produced


def _with_gaps(
    job: Generation,
    first: int,
    scores: Sequence[TokenScore],
    logits: Tensor,
    exact: ExactLogits | None,
) -> Iterator[TokenScore]:
    """The scores of the job's tokens from `first` on, those of the answer with their gaps: its
    rules see it grow."""
    for row, score in enumerate(scores):
        index = first + row - job.prompt_count
        if index < 0:
            yield score
            continue
        values = logits[row].to(torch.float32, copy=True)
        if job.rules is not None:
            job.rules.apply(values)
        taken = exact.take([row]) if exact is not None else None
        gap = signed_gap(values, score.token_id, job.sampling, index=index, exact=taken)
        job.note(score.token_id)
        yield replace(score, gap=gap)


def _draw_of(
    rows: Sequence[int], jobs: Sequence[Generation], logits: Tensor, exact: ExactLogits | None
) -> list[int]:
    taken = exact.take(rows) if exact is not None else None
    return _draw([jobs[row] for row in rows], logits, taken)


def _draw(jobs: Sequence[Generation], logits: Tensor, exact: ExactLogits | None) -> list[int]:
    wanted = [job.sampling for job in jobs]
    return choose_tokens(logits, wanted, [job.draw_index for job in jobs], exact)
