"""Writing a response: as one object or as events of a stream. Both come from the same items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.buyer.result import PurchaseResult
from coordinator.gateway.chat.parser import parser_of
from coordinator.gateway.chat.pieces import AnswerReader
from coordinator.gateway.errors import Problem, ProblemKind
from coordinator.gateway.http.collected import write_whole
from coordinator.gateway.http.counting import CountCall
from coordinator.gateway.http.dialect import ChoiceAnswer
from coordinator.gateway.http.openai.dialect import error_object
from coordinator.gateway.http.openai_responses.output import OutputItems
from coordinator.gateway.http.openai_responses.requests import (
    ResponseRequest,
    read_count,
    read_request,
)
from coordinator.gateway.http.strict_json import Fields
from coordinator.gateway.market_side.running import StartedAnswer
from coordinator.gateway.orders import GenerationOrder
from protocol.features import Feature
from protocol.payload import Chunk

_IN_PROGRESS = "in_progress"
# The codes that this API has for a response that failed.
_CODES = {ProblemKind.RATE: "rate_limit_exceeded", ProblemKind.REQUEST: "invalid_prompt"}


def read_response(fields: Fields) -> "ResponseCall":
    """The next message of a conversation, or calls of its tools. Raises ApiError (400, 413)."""
    return ResponseCall(read_request(fields))


def read_input_count(fields: Fields) -> CountCall:
    """How many tokens the input of a response is to the model, for nothing. Raises ApiError (400,
    413)."""
    return CountCall(read_count(fields), {"object": "response.input_tokens"})


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """A `JobCall` for a response."""

    request: ResponseRequest

    @property
    def orders(self) -> tuple[GenerationOrder]:
        return (self.request.order,)

    @property
    def is_streamed(self) -> bool:
        return self.request.is_streamed

    def answer(self, choices: Sequence[ChoiceAnswer], created_s: int) -> bytes:
        return write_whole(lambda opened: self.writer(opened, created_s), choices)

    def writer(self, opened: StartedAnswer, created_s: int) -> "ResponseWriter":
        return ResponseWriter(self.request, opened, created_s)


class ResponseWriter:
    """A `CollectingWriter`."""

    def __init__(self, request: ResponseRequest, opened: StartedAnswer, created_s: int) -> None:
        job_id, model = opened.info.job_id, opened.model
        self._items = OutputItems(job_id, request.namespaces)
        self._reader = AnswerReader(
            parser_of(
                request.order.job_input,
                model.chat_format if model is not None else "",
                lambda call: f"call_{job_id}{call:02x}",
                reasons=model is not None and Feature.REASONING in model.features,
            )
        )
        self.whole: dict[str, Any] = {
            "id": f"resp_{job_id}",
            "object": "response",
            "created_at": created_s,
            "status": _IN_PROGRESS,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": opened.model_name,
            "output": [],
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "usage": None,
            **request.echo,
        }

    def first(self) -> bytes:
        created = self._items.event("response.created", response=self.whole)
        return created + self._items.event("response.in_progress", response=self.whole)

    def add(self, choice: int, chunks: Sequence[Chunk]) -> bytes:
        return self._items.take(self._reader.add(chunks))

    def end(self, choice: int, outcome: PurchaseResult) -> bytes:
        last, reason = self._reader.finish(outcome.finish)
        status = "incomplete" if reason == "length" else "completed"
        events = self._items.take(last) + self._items.close(status)
        self.whole |= {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if reason == "length" else None,
            "output": self._items.items,
            "usage": _usage(outcome),
        }
        return events + self._items.event(f"response.{status}", response=self.whole)

    def fail(self, choice: int, problem: Problem) -> bytes:
        raise AssertionError("a response has one job")

    def broken(self, problem: Problem) -> bytes:
        closing = self._items.close("incomplete")
        error = error_object(problem)
        code = _CODES.get(problem.kind, "server_error")
        self.whole |= {
            "status": "failed",
            "error": {"code": code, "message": error["message"]},
            "output": self._items.items,
        }
        return closing + self._items.event("response.failed", response=self.whole)

    def last(self) -> bytes:
        return b""


def _usage(outcome: PurchaseResult) -> dict[str, Any]:
    """As metered and signed by nodes, and what it cost. Which tokens are reasoning is not metered
    apart from the others."""
    units = outcome.units
    return {
        "input_tokens": units.input_tokens,
        "input_tokens_details": {"cached_tokens": units.cached_tokens},
        "output_tokens": units.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": units.input_tokens + units.output_tokens,
        "cost_nano": outcome.amount_nano,
    }
