"""Writing a message: as one object or as events of a stream. Both come from the same blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.buyer.result import PurchaseResult
from coordinator.gateway.chat.ending import stop_of
from coordinator.gateway.chat.parser import parser_of
from coordinator.gateway.chat.pieces import AnswerReader
from coordinator.gateway.errors import Problem
from coordinator.gateway.http.anthropic.blocks import MessageBlocks
from coordinator.gateway.http.anthropic.dialect import ANTHROPIC
from coordinator.gateway.http.anthropic.requests import MessageRequest, read_count, read_request
from coordinator.gateway.http.collected import write_whole
from coordinator.gateway.http.counting import CountCall
from coordinator.gateway.http.dialect import ChoiceAnswer
from coordinator.gateway.http.event_text import named_event
from coordinator.gateway.http.strict_json import Fields
from coordinator.gateway.market_side.running import StartedAnswer
from coordinator.gateway.orders import GenerationOrder
from protocol.features import Feature
from protocol.payload import Chunk
from protocol.pricing import Units

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def read_message(fields: Fields) -> "MessageCall":
    """The next message of a conversation, or calls of its tools. Raises ApiError (400, 413)."""
    return MessageCall(read_request(fields))


def read_token_count(fields: Fields) -> CountCall:
    """How many tokens a conversation is to the model, for nothing. Raises ApiError (400, 413)."""
    return CountCall(read_count(fields))


@dataclass(frozen=True, slots=True)
class MessageCall:
    """A `JobCall` for a message."""

    request: MessageRequest

    @property
    def orders(self) -> tuple[GenerationOrder]:
        return (self.request.order,)

    @property
    def is_streamed(self) -> bool:
        return self.request.is_streamed

    def answer(self, choices: Sequence[ChoiceAnswer], created_s: int) -> bytes:
        return write_whole(lambda opened: self.writer(opened, created_s), choices)

    def writer(self, opened: StartedAnswer, created_s: int) -> "MessageWriter":
        return MessageWriter(self.request, opened)


class MessageWriter:
    """A `CollectingWriter`."""

    def __init__(self, request: MessageRequest, opened: StartedAnswer) -> None:
        self._job_input = request.order.job_input
        self._blocks = MessageBlocks(shows_thinking=request.shows_thinking)
        model = opened.model
        self._reader = AnswerReader(
            parser_of(
                request.order.job_input,
                model.chat_format if model is not None else "",
                lambda call: f"toolu_{opened.info.job_id}{call:02x}",
                reasons=model is not None and Feature.REASONING in model.features,
            )
        )
        self.whole: dict[str, Any] = {
            "id": f"msg_{opened.info.job_id}",
            "type": "message",
            "role": "assistant",
            "model": opened.model_name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(opened.info.input_units),
        }

    def first(self) -> bytes:
        return named_event("message_start", {"type": "message_start", "message": self.whole})

    def add(self, choice: int, chunks: Sequence[Chunk]) -> bytes:
        return self._blocks.take(self._reader.add(chunks))

    def end(self, choice: int, outcome: PurchaseResult) -> bytes:
        last, reason = self._reader.finish(outcome.finish)
        events = self._blocks.take(last) + self._blocks.close()
        delta = _ending(_STOP_REASONS[reason], stop_of(self._job_input, outcome))
        usage = _usage(outcome.units)
        usage["cost_nano"] = outcome.amount_nano
        self.whole |= {"content": self._blocks.blocks, **delta, "usage": usage}
        message_delta = {"type": "message_delta", "delta": delta, "usage": usage}
        return events + named_event("message_delta", message_delta)

    def fail(self, choice: int, problem: Problem) -> bytes:
        raise AssertionError("a message has one job")

    def broken(self, problem: Problem) -> bytes:
        return ANTHROPIC.error_event(problem)

    def last(self) -> bytes:
        return named_event("message_stop", {"type": "message_stop"})


def _ending(reason: str, stop: str | int | None) -> dict[str, str | None]:
    """Why a message ended, if a text did by `stop`."""
    if reason != "end_turn" or not isinstance(stop, str):
        return {"stop_reason": reason, "stop_sequence": None}
    return {"stop_reason": "stop_sequence", "stop_sequence": stop}


def _usage(units: Units) -> dict[str, int]:
    """Anthropic counts cached tokens beside the others, not among them."""
    return {
        "input_tokens": units.input_tokens - units.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": units.cached_tokens,
        "output_tokens": units.output_tokens,
    }
