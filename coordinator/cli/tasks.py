"""What `coordinator submit` does for each task, in one table: reads the input, shows the answer."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import typer

from coordinator.cli.options import CommandError
from coordinator.cli.tensors import read_tensors, show_tensors, tensors_result
from protocol.codec import decode
from protocol.generation import ChatMessage, GenerationInput
from protocol.messages import Task
from protocol.payload import (
    Chunk,
    ClassificationOutput,
    EmbeddingInput,
    EmbeddingOutput,
    ImageInput,
    JobInput,
)
from protocol.programs.output import print_table
from protocol.tensors import TensorInput

# Enough of a vector to see that it is one.
VECTOR_NUMBERS_SHOWN = 6


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The flags of `submit` that shape an input; each task uses its own."""

    max_tokens: int
    temperature: float
    seed: int | None
    top_k: int
    raw: bool


@dataclass(frozen=True, slots=True)
class TaskCommand:
    """`read` may raise ValueError, `result` RemoteProtocolError if the node sent nonsense. `show`
    prints a result for people, who call such models `words`."""

    read: Callable[[bytes, InputOptions], JobInput]
    result: Callable[[list[Chunk]], dict[str, Any]]
    show: Callable[[dict[str, Any]], None]
    words: str


def read_input(task: Task, content: bytes, options: InputOptions) -> JobInput:
    """Raises CommandError if the content is no input for the task."""
    try:
        return TASK_COMMANDS[task].read(content, options)
    except UnicodeDecodeError:
        raise CommandError("the input is not UTF-8 text") from None
    except ValueError as error:
        raise CommandError(f"this is no input for {task.value}: {error}") from None


def _read_generation(content: bytes, options: InputOptions) -> GenerationInput:
    text = content.decode()
    return GenerationInput(
        max_tokens=options.max_tokens,
        messages=() if options.raw else (ChatMessage("user", text),),
        prompt=text if options.raw else None,
        temperature=options.temperature,
        seed=options.seed,
    )


def _text_result(chunks: list[Chunk]) -> dict[str, Any]:
    return {"text": "".join(chunk.text for chunk in chunks)}


def _end_line(_result: dict[str, Any]) -> None:
    """The text has been printed while it came."""
    typer.echo()


def _read_embedding(content: bytes, _options: InputOptions) -> EmbeddingInput:
    return EmbeddingInput(tuple(line for line in content.decode().splitlines() if line.strip()))


def _vectors_result(chunks: list[Chunk]) -> dict[str, Any]:
    output = decode(EmbeddingOutput, _data_of(chunks))
    count = output.dimensions
    return {"embeddings": [list(struct.unpack(f"<{count}f", raw)) for raw in output.vectors]}


def _show_vectors(result: dict[str, Any]) -> None:
    for vector in result["embeddings"]:
        head = " ".join(f"{number:+.4f}" for number in vector[:VECTOR_NUMBERS_SHOWN])
        typer.echo(f"[{head} … {len(vector)} numbers]")


def _read_image(content: bytes, options: InputOptions) -> ImageInput:
    return ImageInput(content, top_k=options.top_k)


def _labels_result(chunks: list[Chunk]) -> dict[str, Any]:
    labels = decode(ClassificationOutput, _data_of(chunks)).labels
    return {"labels": [{"label": label.label, "score": label.score} for label in labels]}


def _show_labels(result: dict[str, Any]) -> None:
    rows = [(label["label"], f"{label['score']:.1%}") for label in result["labels"]]
    print_table(("label", "probability"), rows)


def _read_tensors(content: bytes, _options: InputOptions) -> TensorInput:
    return read_tensors(content)


def _data_of(chunks: list[Chunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


TASK_COMMANDS: Mapping[Task, TaskCommand] = {
    Task.CAUSAL_LM: TaskCommand(_read_generation, _text_result, _end_line, "text"),
    Task.EMBEDDING: TaskCommand(_read_embedding, _vectors_result, _show_vectors, "embeddings"),
    Task.IMAGE_CLASSIFICATION: TaskCommand(
        _read_image, _labels_result, _show_labels, "labels of images"
    ),
    Task.TENSOR: TaskCommand(_read_tensors, tensors_result, show_tensors, "tensors"),
}
