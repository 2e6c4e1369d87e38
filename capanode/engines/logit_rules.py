"""What one job does to its logits before the temperature: penalties, biases and bans.

The order is that of docs/protocol.md. A job that asks for none of it has no rules and pays nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from capanode.engines.grammar import Grammar
from protocol.generation import GenerationInput


class LogitRules:
    """The rules of one job, and what they need to know of its answer so far."""

    def __init__(
        self,
        job_input: GenerationInput,
        grammar: Grammar | None,
        *,
        prompt: Sequence[int],
        vocab: int,
        ends: frozenset[int],
    ) -> None:
        """`prompt` comes before the answer; `ends` are the tokens that could end it."""
        self._grammar = grammar
        self._answered = 0
        self._min_tokens = job_input.min_tokens
        self._bans_ends = job_input.ignore_eos and grammar is not None
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64)
        self._presence, self._frequency = job_input.presence_penalty, job_input.frequency_penalty
        self._repetition = job_input.repetition_penalty
        self._counts = torch.zeros(vocab) if self._presence or self._frequency else None
        self._seen: Tensor | None = None
        if self._repetition != 1:
            self._seen = torch.zeros(vocab, dtype=torch.bool)
            self._seen[torch.tensor(prompt, dtype=torch.int64)] = True
        biased = [item for item in job_input.logit_bias if item.token_id < vocab]
        self._biased = torch.tensor([item.token_id for item in biased], dtype=torch.int64)
        self._biases = torch.tensor([item.bias for item in biased], dtype=torch.float32)

    @staticmethod
    def are_needed(job_input: GenerationInput) -> bool:
        """Beside those of a grammar."""
        return bool(
            job_input.presence_penalty
            or job_input.frequency_penalty
            or job_input.repetition_penalty != 1
            or job_input.logit_bias
            or job_input.min_tokens
        )

    @property
    def has_grammar(self) -> bool:
        return self._grammar is not None

    @property
    def is_complete(self) -> bool:
        """The format lets nothing follow."""
        return self._grammar is not None and self._grammar.is_complete

    @property
    def has_failed(self) -> bool:
        return self._grammar is not None and self._grammar.has_failed

    def forbids(self, token: int) -> bool:
        """Whether the format does not let `token` come next. Asks no more of the format than
        `apply` does, so that its limits count alike."""
        allowed = self._grammar.allowed() if self._grammar is not None else None
        return allowed is not None and not bool(allowed[token])

    def note(self, token: int, piece: bytes) -> None:
        """The answer has one token more, which spells `piece`."""
        self._answered += 1
        if self._counts is not None:
            self._counts[token] += 1
        if self._seen is not None:
            self._seen[token] = True
        if self._grammar is not None:
            self._grammar.push(token, piece)

    def apply(self, logits: Tensor) -> None:
        """Change the logits [vocab], in float32, in place."""
        device = logits.device
        if self._seen is not None:
            factor = torch.where(logits > 0, 1 / self._repetition, self._repetition)
            logits.copy_(torch.where(self._seen.to(device), logits * factor, logits))
        if self._counts is not None:
            counts = self._counts.to(device)
            logits.sub_(counts * self._frequency).sub_((counts > 0) * self._presence)
        if len(self._biased):
            logits.index_add_(0, self._biased.to(device), self._biases.to(device))
        self._ban(logits)

    def _ban(self, logits: Tensor) -> None:
        allowed = self._grammar.allowed() if self._grammar is not None else None
        if self._answered < self._min_tokens or self._bans_ends:
            free = torch.ones(len(logits), dtype=torch.bool) if allowed is None else allowed.clone()
            free[self._ends] = False
            # A format that allows nothing but the end is complete: that counts for more.
            allowed = free if bool(free.any()) else allowed
        if allowed is not None:
            logits.masked_fill_(~allowed.to(logits.device), -torch.inf)
