"""One generation job: its tokens, how it samples, and when it ends."""

from dataclasses import dataclass
from enum import StrEnum

from capanode.engines.base import Completed, Started
from capanode.engines.detokenize import AnswerText
from capanode.engines.sampling import SamplingParameters
from protocol.payload import tokens_digest
from protocol.pricing import Units


class FinishReason(StrEnum):
    STOP = "stop"  # an end-of-text token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full


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
    input_count: int = 0
    end_token: int | None = None  # the end-of-text token that ended the answer
    row: int = -1  # in the cache; -1 while waiting
    cached: int = 0  # how many of `tokens` the cache holds
    is_started: bool = False

    def __post_init__(self) -> None:
        self.input_count = len(self.tokens)

    @property
    def output_count(self) -> int:
        return len(self.tokens) - self.input_count

    @property
    def draw_index(self) -> int:
        """Which output token comes next, counted over all nodes that worked on this answer."""
        return self.prefix_count + self.output_count

    @property
    def started(self) -> Started:
        digest = tokens_digest((self.tokens[: self.input_count],), prefix_tokens=self.prefix_count)
        return Started(
            self.job_id,
            Units(input_tokens=self.input_count),
            input_digest=digest,
            prefix_tokens=self.prefix_count,
        )

    def finished(self, reason: FinishReason) -> Completed:
        return Completed(self.job_id, reason, self.units, self.end_token)

    @property
    def units(self) -> Units:
        return Units(input_tokens=self.input_count, output_tokens=self.output_count)

    def accept(self, token: int) -> tuple[str, FinishReason | None]:
        """Take the next token; returns the text to deliver and why the answer ends, if it does.

        An end-of-text token is neither delivered nor metered.
        """
        if token in self.end_tokens:
            self.end_token = token
            return self.answer.finish(), FinishReason.STOP
        self.tokens.append(token)
        text = self.answer.push(token)
        if self.answer.is_stopped:
            return text, FinishReason.STOP
        if len(self.tokens) >= self.tokens_max:
            return text + self.answer.finish(), FinishReason.LENGTH
        return text, None
