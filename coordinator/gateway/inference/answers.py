"""From what nodes answered to the tensors of an inference answer. It has been paid for, so a broken
answer is not asked for again."""

import struct
from collections.abc import Sequence
from typing import TypeVar

from coordinator.gateway.errors import ApiError, error_of
from coordinator.gateway.inference.messages import InferenceAnswer, InferenceRequest
from coordinator.gateway.inference.models import (
    EMBEDDING,
    LABEL,
    SCORE,
    TEXT_OUTPUT,
    version_of,
)
from coordinator.gateway.market_side.market import ModelInfo
from coordinator.gateway.market_side.running import WholeAnswer
from protocol.codec import decode
from protocol.errors import Code, RemoteProtocolError
from protocol.messages import Task
from protocol.payload import ClassificationOutput, EmbeddingOutput
from protocol.tensors import Datatype, NamedTensor, TensorOutput, join_strings

T = TypeVar("T")


def answer_of(
    request: InferenceRequest, model: ModelInfo, answers: Sequence[WholeAnswer]
) -> InferenceAnswer:
    """Raises ApiError (502)."""
    try:
        made = {tensor.name: tensor for tensor in _tensors(request, model, answers)}
    except ValueError as error:
        raise _broken(str(error)) from error
    wanted = request.outputs or tuple(made)
    if not made.keys() >= set(wanted):
        raise _broken("an output is missing")
    outputs = tuple(made[name] for name in wanted)
    return InferenceAnswer(model.name, version_of(model), request.id, outputs)


def text_tensor(texts: Sequence[str]) -> NamedTensor:
    strings = join_strings(text.encode() for text in texts)
    return NamedTensor(TEXT_OUTPUT, Datatype.BYTES, (len(texts),), strings)


def _tensors(
    request: InferenceRequest, model: ModelInfo, answers: Sequence[WholeAnswer]
) -> Sequence[NamedTensor]:
    if model.task is Task.CAUSAL_LM:
        return (text_tensor([answer.text for answer in answers]),)
    if model.task is Task.EMBEDDING:
        output = _decode(EmbeddingOutput, answers[0])
        if len(output.vectors) != request.inputs[0].elements:
            raise _broken("the node sent another number of vectors")
        shape = (len(output.vectors), output.dimensions)
        return (NamedTensor(EMBEDDING, Datatype.FP32, shape, b"".join(output.vectors)),)
    if model.task is Task.IMAGE_CLASSIFICATION:
        return _labels([_decode(ClassificationOutput, answer) for answer in answers])
    return _decode(TensorOutput, answers[0]).outputs


def _labels(outputs: Sequence[ClassificationOutput]) -> Sequence[NamedTensor]:
    counts = {len(output.labels) for output in outputs}
    if len(counts) != 1:
        raise _broken("the nodes sent different numbers of labels")
    shape = (len(outputs), *counts)
    found = [label for output in outputs for label in output.labels]
    labels = join_strings(label.label.encode() for label in found)
    scores = struct.pack(f"<{len(found)}f", *(label.score for label in found))
    return (
        NamedTensor(LABEL, Datatype.BYTES, shape, labels),
        NamedTensor(SCORE, Datatype.FP32, shape, scores),
    )


def _decode(cls: type[T], answer: WholeAnswer) -> T:
    try:
        return decode(cls, answer.data)
    except RemoteProtocolError as error:
        raise error_of(error.code, str(error), is_billed=True) from error


def _broken(why: str) -> ApiError:
    return error_of(Code.MALFORMED, why, is_billed=True)
