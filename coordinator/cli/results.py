"""An answer as people and programs want to see it, whatever the task."""

import struct
from typing import Any

import typer

from coordinator.buyer.attempt import AttemptResult, AttemptTerms
from protocol.codec import decode
from protocol.messages import Task
from protocol.money import format_credits
from protocol.payload import Chunk, ClassificationOutput, EmbeddingOutput
from protocol.programs.output import print_table, say, short

# Enough of a vector to see that it is one.
VECTOR_NUMBERS_SHOWN = 6


def result_of(task: Task, chunks: list[Chunk]) -> dict[str, Any]:
    """The whole answer as plain data. Raises RemoteProtocolError if the node sent nonsense."""
    if task is Task.CAUSAL_LM:
        return {"text": "".join(chunk.text for chunk in chunks)}
    data = b"".join(chunk.data for chunk in chunks)
    if task is Task.EMBEDDING:
        output = decode(EmbeddingOutput, data)
        count = output.dimensions
        return {"embeddings": [list(struct.unpack(f"<{count}f", raw)) for raw in output.vectors]}
    labels = decode(ClassificationOutput, data).labels
    return {"labels": [{"label": label.label, "score": label.score} for label in labels]}


def print_result(task: Task, result: dict[str, Any]) -> None:
    """For people; a generated text has been printed while it came."""
    if task is Task.EMBEDDING:
        for vector in result["embeddings"]:
            head = " ".join(f"{number:+.4f}" for number in vector[:VECTOR_NUMBERS_SHOWN])
            typer.echo(f"[{head} … {len(vector)} numbers]")
    elif task is Task.IMAGE_CLASSIFICATION:
        rows = [(label["label"], f"{label['score']:.1%}") for label in result["labels"]]
        print_table(("label", "probability"), rows)


def outcome_plain(info: AttemptTerms, outcome: AttemptResult) -> dict[str, Any]:
    return {
        "job_id": info.job_id,
        "node": info.node,
        "attempts": info.attempts,
        "model_digest": info.model_digest,
        "finish": outcome.finish.value,
        "input_tokens": outcome.units.input_tokens,
        "output_tokens": outcome.units.output_tokens,
        "images": outcome.units.images,
        "amount_nano": outcome.amount_nano,
        "counts_agree": outcome.acceptance.message.agrees,
    }


def print_outcome(
    info: AttemptTerms, outcome: AttemptResult, *, first_output_ms: float, total_ms: float
) -> None:
    """One line under the answer: where, how fast, how much."""
    units = outcome.units
    used = f"{units.images} image" if units.images else f"{units.input_tokens} tokens in"
    if units.output_tokens:
        used += f", {units.output_tokens} out"
    rate = ""
    if units.output_tokens > 1 and total_ms > first_output_ms:
        rate = f", {1_000 * (units.output_tokens - 1) / (total_ms - first_output_ms):.0f} tok/s"
    tries = f", attempt {info.attempts}" if info.attempts > 1 else ""
    say(
        f"[node {short(info.node)}{tries}; first output {first_output_ms:.0f} ms, total "
        f"{total_ms:.0f} ms{rate}; {used}; {format_credits(outcome.amount_nano)} credits; "
        f"job {info.job_id}]"
    )
