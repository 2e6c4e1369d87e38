"""What chat and completions share: a parsed request for text, its answer and its events."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coordinator.buyer.result import PurchaseResult
from coordinator.gateway.http.openai.sampling import Streaming
from coordinator.gateway.http.openai.sse import ChoiceShape, Envelope, Events
from coordinator.gateway.http.responses import to_json
from coordinator.gateway.market_side.running import StartedAnswer, WholeAnswer
from coordinator.gateway.orders import GenerationOrder
from protocol.endings import API_FINISH_REASONS

# Enough of the manifest's digest to tell models apart; `GET /v1/models` has all of it.
FINGERPRINT_CHARS = 16


@dataclass(frozen=True, slots=True)
class TextForm:
    """How one endpoint writes an answer: `choice` makes the one choice of a whole answer from its
    text and finish reason, `chunk_choice` writes those of a stream."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    choice: Callable[[str, str], dict[str, Any]]
    chunk_choice: ChoiceShape


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """A `JobCall` for text."""

    order: GenerationOrder
    streaming: Streaming
    form: TextForm

    @property
    def is_streamed(self) -> bool:
        return self.streaming.is_streamed

    def answer(self, finished: WholeAnswer, created_s: int) -> bytes:
        reason = API_FINISH_REASONS[finished.outcome.finish]
        envelope = self._envelope(finished.opened, self.form.whole_object, created_s)
        answer = envelope.to_plain() | {
            "choices": [self.form.choice(finished.text, reason)],
            "usage": _usage_of(finished.outcome),
        }
        return to_json(answer)

    def writer(self, opened: StartedAnswer, created_s: int) -> "GenerationWriter":
        envelope = self._envelope(opened, self.form.chunk_object, created_s)
        include_usage = self.streaming.include_usage
        return GenerationWriter(
            Events(envelope, self.form.chunk_choice, include_usage=include_usage)
        )

    def _envelope(self, opened: StartedAnswer, object_name: str, created_s: int) -> Envelope:
        return Envelope(
            id=f"{self.form.id_prefix}-{opened.info.job_id}",
            object_name=object_name,
            created=created_s,
            model=self.order.routing.model,
            system_fingerprint=opened.info.model_digest[:FINGERPRINT_CHARS],
        )


@dataclass(frozen=True, slots=True)
class GenerationWriter:
    """A `StreamWriter`."""

    events: Events

    def first(self) -> bytes:
        return self.events.first()

    def text(self, text: str) -> bytes:
        return self.events.text(text)

    def last(self, outcome: PurchaseResult) -> bytes:
        return self.events.last(API_FINISH_REASONS[outcome.finish], _usage_of(outcome))


def _usage_of(outcome: PurchaseResult) -> dict[str, int]:
    """OpenAI's counts, as metered and signed by the node, and what they cost."""
    units = outcome.units
    return {
        "prompt_tokens": units.input_tokens,
        "completion_tokens": units.output_tokens,
        "total_tokens": units.input_tokens + units.output_tokens,
        "cost_nano": outcome.amount_nano,
    }
