"""The jobs that a start-up benchmark times, one function for each kind of task.

Each runs a few short jobs on a worker that has nothing else to do, and says how fast they were.
"""

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import trio

from capanode.engines.base import EngineInfo, Failed, Produced, Started
from capanode.errors import BenchmarkError
from capanode.worker.jobs import JobWorker, open_job
from protocol.codec import encode
from protocol.errors import RemoteProtocolError
from protocol.features import Feature
from protocol.generation import GenerationInput
from protocol.offers import TOKENS_PER_S_MAX
from protocol.payload import EmbeddingInput, ImageInput
from protocol.pricing import Units
from protocol.tensors import ELEMENT_BYTES, NamedTensor, TensorInput, TensorMetadata

# Long enough for the mean to settle, short enough that a start takes a second or two.
_PROMPT_WORDS = 200
_OUTPUT_TOKENS = 24
_BATCH = 8
_TEXTS = 8
_IMAGES = 4
_IMAGE_PIXELS = 64
_TENSOR_JOBS = 4
# A small batch, as clients send them.
_TENSOR_ROWS = 32
_TENSOR_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Speed:
    """What the start-up benchmark measured, per second: input tokens of one job, output tokens (or
    images, or elements of tensors) of one job, and of several jobs at once."""

    prefill_tps: int
    decode_tps: int
    batched_tps: int


@dataclass(frozen=True, slots=True)
class _Run:
    """One job's outcome: its units, and when (in trio's time) its first and last output came."""

    units: Units
    first_at: float
    last_at: float


async def measure_generation(worker: JobWorker, info: EngineInfo) -> Speed:
    # A quarter of the context each, so that it fits however the tokenizer cuts the words.
    words = max(1, min(_PROMPT_WORDS, info.context_tokens // 4))
    tokens = max(2, min(_OUTPUT_TOKENS, info.context_tokens // 4))

    def job(max_tokens: int, prompt_words: int) -> bytes:
        return encode(
            GenerationInput(
                max_tokens=max_tokens,
                prompt="one two " * (prompt_words // 2 + 1),
                # Sampled: a likeliest answer soon repeats itself, and drafts would make it faster
                # than those of most jobs.
                temperature=1.0,
                ignore_eos=True,
            )
        )

    await _run(worker, job(2, 1), "warm-up")
    started_at = trio.current_time()
    prefill = await _run(worker, job(1, words), "prefill")
    prefill_s = prefill.first_at - started_at
    single = await _run(worker, job(tokens, 1), "decode")
    decoded = single.units.output_tokens - 1
    batched = await _run_together(
        worker, job(tokens, 1), min(info.slots, _BATCH), lambda units: units.output_tokens
    )
    decode_tps = _per_second(decoded, single.last_at - single.first_at)
    return Speed(
        prefill_tps=_per_second(prefill.units.input_tokens, prefill_s),
        decode_tps=decode_tps,
        # A batch is never slower in all; if it looks so, something else used the machine.
        batched_tps=max(batched, decode_tps),
    )


async def measure_embedding(worker: JobWorker, info: EngineInfo) -> Speed:
    query = "one two" if Feature.PAIR_SCORES in info.features else None
    payload = encode(EmbeddingInput(("one two three four " * 10,) * _TEXTS, query=query))
    await _run(worker, payload, "warm-up")
    tps = await _run_together(worker, payload, 2, lambda units: units.input_tokens)
    return Speed(prefill_tps=tps, decode_tps=tps, batched_tps=tps)


async def measure_images(worker: JobWorker, info: EngineInfo) -> Speed:
    payload = encode(ImageInput(grey_png(_IMAGE_PIXELS), top_k=1))
    await _run(worker, payload, "warm-up")
    started_at = trio.current_time()
    for number in range(_IMAGES):
        await _run(worker, payload, f"image-{number}")
    single = _per_second(_IMAGES, trio.current_time() - started_at)
    batched = await _run_together(
        worker, payload, min(info.slots, _IMAGES), lambda units: units.images
    )
    return Speed(prefill_tps=single, decode_tps=single, batched_tps=max(batched, single))


async def measure_tensors(worker: JobWorker, info: EngineInfo) -> Speed:
    """Jobs of some rows of zeros. Raises BenchmarkError."""
    assert info.signature is not None, "a tensor model says what it takes"
    wanted = info.signature.inputs
    row_bytes = sum(ELEMENT_BYTES[t.datatype] * math.prod(t.shape[1:]) for t in wanted)
    rows = max(1, min(_TENSOR_ROWS, _TENSOR_BYTES // row_bytes))
    job_input = TensorInput(tuple(_zeros(tensor, rows) for tensor in wanted))
    payload = encode(job_input)
    await _run(worker, payload, "warm-up")
    started_at = trio.current_time()
    for number in range(_TENSOR_JOBS):
        await _run(worker, payload, f"tensor-{number}")
    elements = _TENSOR_JOBS * job_input.elements
    single = _per_second(elements, trio.current_time() - started_at)
    batched = await _run_together(
        worker, payload, min(info.slots, _BATCH), lambda units: units.tensor_elements
    )
    return Speed(prefill_tps=single, decode_tps=single, batched_tps=max(batched, single))


def _zeros(tensor: TensorMetadata, rows: int) -> NamedTensor:
    shape = (rows, *tensor.shape[1:])
    size = math.prod(shape) * ELEMENT_BYTES[tensor.datatype]
    return NamedTensor(tensor.name, tensor.datatype, shape, bytes(size))


async def _run_together(
    worker: JobWorker, payload: bytes, count: int, counted: Callable[[Units], int]
) -> int:
    """What `count` jobs at once get done per second, all together. Raises BenchmarkError."""
    done = 0
    failure: BenchmarkError | None = None

    async def run_one(number: int) -> None:
        nonlocal done, failure
        try:
            outcome = await _run(worker, payload, f"batch-{number}")
        except BenchmarkError as error:
            failure = error
        else:
            done += counted(outcome.units)

    started_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(run_one, number)
    if failure is not None:
        raise failure
    return _per_second(done, trio.current_time() - started_at)


async def _run(worker: JobWorker, payload: bytes, name: str) -> _Run:
    """Raises BenchmarkError."""
    first_at = last_at = trio.current_time()
    units = Units()
    is_first = True
    try:
        async with open_job(worker, f"benchmark-{name}", payload) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise BenchmarkError(f"the model fails its benchmark: {event.message}")
                if isinstance(event, Produced):
                    last_at = trio.current_time()
                    first_at = last_at if is_first else first_at
                    is_first = False
                elif not isinstance(event, Started):
                    units = event.units
    except RemoteProtocolError as error:
        raise BenchmarkError(f"the model's worker takes no benchmark: {error}") from error
    return _Run(units, first_at, last_at)


def _per_second(units: int, duration_s: float) -> int:
    """At least one where anything was done; a clock too coarse to tell is not infinitely fast."""
    if units <= 0:
        return 0
    return max(1, min(round(units / max(duration_s, 1e-6)), TOKENS_PER_S_MAX))


def grey_png(pixels: int) -> bytes:
    """A small valid image, made by hand: the node's own process loads no image library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", pixels, pixels, 8, 2, 0, 0, 0)  # 8 bits, RGB
    rows = (b"\0" + b"\x80" * (3 * pixels)) * pixels
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
