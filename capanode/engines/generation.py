"""One generation job: its tokens, how it samples, and when it ends."""

from dataclasses import dataclass, replace
from enum import StrEnum

from capanode.engines.base import Completed, Failed, Produced, Started
from capanode.engines.detokenize import AnswerText
from capanode.engines.drafter import Drafter
from capanode.engines.logit_rules import LogitRules
from capanode.engines.sampling import SamplingParameters
from protocol.codec import encode
from protocol.errors import Code
from protocol.generation import TokenScore, TokenScores
from protocol.limits import MIB, OUTPUT_BYTES_MAX
from protocol.payload import tokens_digest
from protocol.pricing import Units

# What the scores of one job may take; the rest of an output is its text.
SCORE_BYTES_MAX = OUTPUT_BYTES_MAX - MIB


class FinishReason(StrEnum):
    STOP = "stop"  # an end-of-text token, a stop string or token, or a complete format
    LENGTH = "length"  # max_tokens, the context is full, or no more scores fit an output


@dataclass(slots=True, eq=False)
class Generation:
    """`tokens` are the prompt, with what was answered elsewhere before, and then the answer."""

    job_id: str
    tokens: list[int]
    sampling: SamplingParameters
    answer: AnswerText
    prefix_count: int  # output tokens that came with the input
    tokens_max: int  # where the answer ends, counted in `tokens`
    end_tokens: frozenset[int]  # empty if the client wants to go on past them
    rules: LogitRules | None = None
    logprobs: int | None = None  # alternatives to score with each output token
    prompt_logprobs: int | None = None
    scores_prefix: bool = False  # the prefix is an answer that is checked
    cache_salt: str = ""  # only jobs of one salt take over what others have computed
    page_keys: list[bytes] | None = None  # of the prompt's pages, once they are made
    input_count: int = 0
    end_token: int | None = None  # the end-of-text token that ended the answer
    row: int = -1  # in the cache; -1 while waiting
    cached: int = 0  # how many of `tokens` the cache holds
    cached_tokens: int = 0  # how many of the input it held before the job began
    scored: int = 0  # how many tokens of the prompt have their scores
    score_bytes: int = 0
    failure: str | None = None  # why it cannot go on, in words of ours
    is_started: bool = False
    drafter: Drafter | None = None  # once tokens were drafted for it, or might have been

    def __post_init__(self) -> None:
        self.input_count = len(self.tokens)

    @property
    def prompt_count(self) -> int:
        """How many of the tokens are not of the answer, wherever that was made."""
        return self.input_count - self.prefix_count

    @property
    def output_count(self) -> int:
        return len(self.tokens) - self.input_count

    @property
    def draw_index(self) -> int:
        """Which output token comes next, counted over all nodes that worked on this answer."""
        return self.prefix_count + self.output_count

    @property
    def is_over(self) -> bool:
        """The prefix is the whole answer: a stop string or a complete format ended it."""
        return self.answer.is_stopped or self._is_complete

    @property
    def units(self) -> Units:
        return replace(self.input_units, output_tokens=self.output_count)

    @property
    def input_units(self) -> Units:
        return Units(input_tokens=self.input_count, cached_tokens=self.cached_tokens)

    @property
    def scores_prompt(self) -> bool:
        return self.prompt_logprobs is not None and self.scored < self.input_count

    @property
    def started(self) -> Started:
        digest = tokens_digest((self.tokens[: self.input_count],), prefix_tokens=self.prefix_count)
        return Started(
            self.job_id,
            self.input_units,
            input_digest=digest,
            prefix_tokens=self.prefix_count,
        )

    def finished(self, reason: FinishReason) -> Completed:
        return Completed(
            self.job_id,
            reason,
            self.units,
            self.end_token,
            self.answer.stopped_by if reason is FinishReason.STOP else None,
        )

    def failed(self, message: str) -> Failed:
        return Failed(self.job_id, Code.INVALID_INPUT, message, self.units)

    def replay(self) -> None:
        """Let what looks back at the answer see the tokens that were answered elsewhere."""
        for token in self.tokens[self.input_count - self.prefix_count : self.input_count]:
            self.note(token)

    def note(self, token: int) -> str:
        """Let what looks back at the answer see its next token; returns the text it releases."""
        if self.rules is not None:
            self.rules.note(token, self.answer.piece(token))
            self._check_rules()
        return self.answer.push(token)

    def take_prompt_scores(self, block: bytes) -> Produced | None:
        """None once they are more than an output may hold: then the job has failed."""
        self.score_bytes += len(block)
        if self.score_bytes > SCORE_BYTES_MAX:
            self.scored = self.input_count
            self.failure = "the scores of the prompt do not fit into one answer"
            return None
        return Produced(self.job_id, (), "", block)

    def accept(
        self, token: int, score: TokenScore | None
    ) -> tuple[Produced | None, FinishReason | None]:
        """Take the next token; returns what to deliver and why the answer ends, if it does.

        A token that ends an answer is neither delivered nor metered.
        """
        self._check_rules()
        if token in self.end_tokens:
            self.end_token = token
            text = self.answer.finish()
            return Produced(self.job_id, (), text) if text else None, FinishReason.STOP
        self.tokens.append(token)
        text, reason = self.note(token), None
        data = encode(TokenScores((score,))) if score is not None else b""
        self.score_bytes += len(data)
        if self.answer.is_stopped or self._is_complete:
            reason = FinishReason.STOP
        elif len(self.tokens) >= self.tokens_max or self.score_bytes > SCORE_BYTES_MAX:
            reason = FinishReason.LENGTH
        if reason is not None:
            text += self.answer.finish()
        return Produced(self.job_id, (token,), text, data), reason

    @property
    def _is_complete(self) -> bool:
        return self.rules is not None and self.rules.is_complete

    def _check_rules(self) -> None:
        """A format that has failed lets an answer end anywhere."""
        if self.rules is not None and self.rules.has_failed:
            is_checked = self.scores_prefix and not self.output_count
            self.failure = (
                "the answer to check does not match the format"
                if is_checked
                else "the format became too complex to be enforced"
            )
