"""Requests of a stream and the replies to them: which can share a job, and how its answer is split.

A stream may mix several series: `sequence_id` says to which one a request belongs,
`sequence_start` forgets the rows before it, `sequence_end` those up to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from coordinator.gateway.errors import ApiError, error_of, invalid
from coordinator.gateway.inference.messages import ID_CHARS_MAX, InferenceAnswer, InferenceRequest
from coordinator.gateway.market_side.running import WholeAnswer
from protocol.errors import Code
from protocol.tensor_rows import can_join, rows_of, take_rows
from protocol.tensors import TensorInput

_SERIES = "sequence_id"
_BEGINS = "sequence_start"
_ENDS = "sequence_end"


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """`is_context`: its rows were answered before, by another stream that broke."""

    request: InferenceRequest
    is_context: bool = False

    @classmethod
    def of(cls, request: InferenceRequest, *, is_context: bool) -> "StreamRequest":
        """Raises ApiError (400) if what it says of its series is of a wrong type."""
        series = request.parameters.get(_SERIES)
        if series is not None and type(series) not in (int, str):
            raise _wrong_type(_SERIES, "a number or text")
        if isinstance(series, str) and len(series) > ID_CHARS_MAX:
            path = f"parameters.{_SERIES}"
            raise invalid(f"{path} has at most {ID_CHARS_MAX} characters", path)
        for name in (_BEGINS, _ENDS):
            if not isinstance(request.parameters.get(name), bool | None):
                raise _wrong_type(name, "true or false")
        return cls(request, is_context)

    @property
    def size(self) -> int:
        return sum(len(tensor.data) for tensor in self.request.inputs)


@dataclass(frozen=True, slots=True)
class StreamReply:
    """The answer to one request, or why there is none. `elements` is what was metered of it; the
    last of a job's requests has what all of them cost, and where they ran. A text comes in several
    replies."""

    request: InferenceRequest
    answer: InferenceAnswer | ApiError
    is_final: bool = True
    elements: int = 0
    cost_nano: int = 0
    node: str = ""


def _wrong_type(name: str, expected: str) -> ApiError:
    path = f"parameters.{name}"
    return invalid(f"{path} must be {expected}", path, code="invalid_type")


def series_key(request: InferenceRequest) -> tuple[str, str, object]:
    return request.model, request.version, request.parameters.get(_SERIES)


def begins_series(request: InferenceRequest) -> bool:
    return bool(request.parameters.get(_BEGINS))


def ends_series(request: InferenceRequest) -> bool:
    return bool(request.parameters.get(_ENDS))


def can_share_job(first: StreamRequest, other: StreamRequest | ApiError) -> bool:
    """Whether both can be answered by one job: they ask the same of the same series."""
    if isinstance(other, ApiError):
        return False
    one, two = first.request, other.request
    if begins_series(two) or ends_series(one):
        return False
    return (
        first.is_context == other.is_context
        and (one.model, one.version, one.outputs) == (two.model, two.version, two.outputs)
        and _plain_parameters(one) == _plain_parameters(two)
        and can_join(one.inputs, two.inputs)
    )


def _plain_parameters(request: InferenceRequest) -> dict[str, Any]:
    return {name: v for name, v in request.parameters.items() if name not in (_BEGINS, _ENDS)}


def without_series(request: InferenceRequest) -> dict[str, Any]:
    return {name: v for name, v in _plain_parameters(request).items() if name != _SERIES}


def split_answer(
    items: Sequence[StreamRequest], answer: InferenceAnswer, whole: WholeAnswer
) -> list[StreamReply]:
    """Each request's rows of the answer. Raises ApiError (502) if it has other rows."""
    counts = [rows_of(item.request.inputs) or 0 for item in items]
    if any(tensor.rows != sum(counts) for tensor in answer.outputs) and len(items) > 1:
        raise error_of(Code.MALFORMED, "the node answered other rows", is_billed=True)
    replies: list[StreamReply] = []
    at = 0
    for number, (item, count) in enumerate(zip(items, counts, strict=True)):
        outputs = answer.outputs
        if len(items) > 1:
            outputs = tuple(take_rows(tensor, at, at + count) for tensor in outputs)
        at += count
        is_last = number == len(items) - 1
        replies.append(
            StreamReply(
                item.request,
                replace(answer, id=item.request.id, outputs=outputs),
                elements=TensorInput(item.request.inputs).elements,
                cost_nano=whole.outcome.amount_nano if is_last else 0,
                node=whole.opened.info.node if is_last else "",
            )
        )
    return replies
