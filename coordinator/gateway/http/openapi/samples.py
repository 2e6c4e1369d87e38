"""An answer of each task as a node may give it, so that writers can show what they make of it."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from coordinator.buyer.attempt import AttemptTerms
from coordinator.buyer.result import PurchaseResult
from coordinator.gateway.http.dialect import JobCall
from coordinator.gateway.market_side.running import StartedAnswer, WholeAnswer
from coordinator.gateway.orders import Order
from protocol.codec import encode
from protocol.endings import Finish
from protocol.generation import GenerationInput, TokensOutput
from protocol.ids import JobId, PeerId, sha256_digest
from protocol.messages import Task
from protocol.payload import Chunk, ClassificationOutput, EmbeddingOutput, Label
from protocol.pricing import PriceSheet, Units

CREATED_S = 1_800_000_000
_TERMS = AttemptTerms(
    job_id=JobId("01M85AHTB35FKDKRAZX80MZY81"),
    node=PeerId("12D3KooWATuw9SDGfkhGe7wXZNHRpC4srtWVWjwsj2ZFa3NXgjBK"),
    attempts=1,
    model_digest=sha256_digest(b"a manifest"),
    price=PriceSheet(),
    ceiling_nano=0,
    input_units=Units(31),
    queue_position=0,
    lease_ms=0.0,
    match_us=0,
)
OPENED = StartedAnswer(_TERMS, 0.0, None, model_name="", generation_id=_TERMS.job_id)
TEXT = "Sunlight is scattered by the air."


def _vectors(job_input: Any) -> bytes:
    vector = struct.pack("<3f", 0.5, -0.25, 0.125)
    return encode(EmbeddingOutput(3, (vector,) * len(job_input.texts)))


def _labels(job_input: Any) -> bytes:
    return encode(ClassificationOutput((Label("military uniform", 0.75),)))


_DATA: Mapping[Task, Callable[[Any], bytes]] = {
    Task.EMBEDDING: _vectors,
    Task.IMAGE_CLASSIFICATION: _labels,
}


def has_sample(task: Task) -> bool:
    return task is Task.CAUSAL_LM or task in _DATA


def _chunks(order: Order) -> list[Chunk]:
    job_input = order.job_input
    if isinstance(job_input, GenerationInput) and job_input.tokenizes_only:
        return [Chunk(data=encode(TokensOutput((47, 5), (b"The", b" cat"))))]
    if order.task is Task.CAUSAL_LM:
        return [Chunk((1, 2), TEXT[:8]), Chunk((3, 4), TEXT[8:])]
    return [Chunk(data=_DATA[order.task](order.job_input))]


def _outcome(order: Order) -> PurchaseResult:
    units = Units(images=1) if order.task is Task.IMAGE_CLASSIFICATION else Units(31, 4)
    finish = Finish.STOP if order.task is Task.CAUSAL_LM else Finish.COMPLETE
    return PurchaseResult(finish, units, 424, ())


def _opened(order: Order) -> StartedAnswer:
    return replace(OPENED, model_name=order.routing.model)


def whole_answer(call: JobCall) -> bytes:
    """The body of a whole answer."""
    answers: Sequence[WholeAnswer] = [
        WholeAnswer(_opened(order), _chunks(order), _outcome(order)) for order in call.orders
    ]
    return call.answer(answers, CREATED_S)


def streamed_answer(call: JobCall) -> bytes:
    """All events of a stream."""
    writer = call.writer(_opened(call.orders[0]), CREATED_S)
    events = [writer.first()]
    for choice, order in enumerate(call.orders):
        events += [writer.add(choice, [chunk]) for chunk in _chunks(order)]
        events.append(writer.end(choice, _outcome(order)))
    return b"".join([*events, writer.last()])
