"""An inference request and its answer, as the Open Inference Protocol has them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from protocol.tensors import NamedTensor

ID_CHARS_MAX = 256
PARAMETERS_MAX = 64


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """`outputs` names those that are wanted; none named are all. `version` is empty for the one
    that is offered now."""

    model: str
    inputs: tuple[NamedTensor, ...]
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class InferenceAnswer:
    """What a request came to."""

    model: str
    version: str
    id: str
    outputs: tuple[NamedTensor, ...]
