"""What the Open Inference Protocol's routes tell of a server and its models, as GET /openapi.json
describes it."""

from typing import Annotated, TypedDict


class ServerAnswer(TypedDict):
    name: str
    version: str
    extensions: list[str]


class LiveAnswer(TypedDict):
    live: bool


class ReadyAnswer(TypedDict):
    ready: bool


class ModelReadyAnswer(TypedDict):
    name: str
    ready: bool


class PlainTensor(TypedDict):
    name: str
    datatype: str
    shape: Annotated[list[int], "-1 where any length will do"]


class ModelMetadata(TypedDict):
    name: str
    versions: list[str]
    platform: str
    inputs: list[PlainTensor]
    outputs: list[PlainTensor]


class PlainTally(TypedDict):
    count: int
    ns: int


class PlainUse(TypedDict):
    last_inference: Annotated[int, "milliseconds since 1970"]
    inference_count: int
    execution_count: int
    inference_stats: dict[str, PlainTally]


class ModelStatistics(PlainUse):
    name: str
    version: str


class StatisticsAnswer(TypedDict):
    model_stats: list[ModelStatistics]
