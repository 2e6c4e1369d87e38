"""What a model is over the Open Inference Protocol: its inputs and outputs, version and platform.

Models for texts and pictures have inputs and outputs of fixed names; those of tensor models are the
model's own, as its nodes' offers say.
"""

from collections.abc import Mapping

from coordinator.gateway.errors import ApiError, error_of
from coordinator.gateway.market_side.market import ModelInfo
from protocol.errors import Code
from protocol.messages import Task
from protocol.tensors import Datatype, ModelSignature, TensorMetadata

TEXT_INPUT = "text_input"
TEXT_OUTPUT = "text_output"
EMBEDDING = "embedding"
IMAGE = "image"
LABEL = "label"
SCORE = "score"

# Enough of the manifest's digest to tell versions apart; the digest itself is one too.
VERSION_CHARS = 16

_TEXTS = TensorMetadata(TEXT_INPUT, Datatype.BYTES, (-1,))
_SIGNATURES: Mapping[Task, ModelSignature] = {
    Task.CAUSAL_LM: ModelSignature(
        inputs=(_TEXTS,), outputs=(TensorMetadata(TEXT_OUTPUT, Datatype.BYTES, (-1,)),)
    ),
    Task.EMBEDDING: ModelSignature(
        inputs=(_TEXTS,), outputs=(TensorMetadata(EMBEDDING, Datatype.FP32, (-1, -1)),)
    ),
    Task.IMAGE_CLASSIFICATION: ModelSignature(
        inputs=(TensorMetadata(IMAGE, Datatype.BYTES, (-1,)),),
        outputs=(
            TensorMetadata(LABEL, Datatype.BYTES, (-1, -1)),
            TensorMetadata(SCORE, Datatype.FP32, (-1, -1)),
        ),
    ),
}


def signature_of(model: ModelInfo) -> ModelSignature | None:
    """None if a tensor model's nodes do not say what it takes."""
    return _SIGNATURES.get(model.task, model.signature)


def platform_of(model: ModelInfo) -> str:
    return f"capacloud_{model.task.value}"


def version_of(model: ModelInfo) -> str:
    return model.digest[:VERSION_CHARS]


def pinned_model(model: ModelInfo | None, name: str, version: str) -> tuple[ModelInfo, str]:
    """The model, and by what a job names it: by its digest if the request names a version. Raises
    ApiError (404)."""
    if model is None:
        raise error_of(Code.UNKNOWN_MODEL, f"no node offers {name[:128]!r} now")
    if not version:
        return model, name
    if len(version) < VERSION_CHARS or not model.digest.startswith(version):
        raise _no_version(model, version)
    return model, model.digest


def _no_version(model: ModelInfo, version: str) -> ApiError:
    return error_of(
        Code.UNKNOWN_MODEL,
        f"{model.name} has no version {version[:128]!r}: {version_of(model)} is offered now",
    )
