"""How fast a model runs here: a few short jobs on its own worker before the node offers it.

What is measured goes into the offer as a claim, and into the price. It need not be exact: markets
correct claims by what clients see. It is kept by model, hardware and version, so that a restart
does not measure again.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
import trio

from capanode.engines.base import EngineInfo, Failed, Produced, Started
from capanode.errors import BenchmarkError
from capanode.models.files import write_durably
from capanode.pricing_policy import Speed
from capanode.worker.jobs import JobWorker, open_job
from protocol.codec import encode
from protocol.errors import RemoteProtocolError
from protocol.ids import Digest
from protocol.messages import TOKENS_PER_S_MAX, Hardware, Task
from protocol.payload import EmbeddingInput, GenerationInput, ImageInput
from protocol.pricing import Units

log = structlog.get_logger(__name__)

# A slow machine with a large model does a few tokens a second; below that it cannot be sold anyway.
WITHIN_S = 120.0

# Long enough for the mean to settle, short enough that a start takes a second or two.
_PROMPT_WORDS = 200
_OUTPUT_TOKENS = 24
_BATCH = 8
_TEXTS = 8
_IMAGES = 4
_IMAGE_PIXELS = 64
_PRIVATE_FILE = 0o600


@dataclass(frozen=True, slots=True)
class _Run:
    """One job's outcome: its units, and when (in trio's time) its first and last output came."""

    units: Units
    first_at: float
    last_at: float


async def measure_speed(worker: JobWorker) -> Speed:
    """Raises BenchmarkError if the model does not answer."""
    info = worker.info
    assert info is not None, "a worker is measured after it was ready"
    try:
        with trio.fail_after(WITHIN_S):
            if info.task is Task.CAUSAL_LM:
                return await _measure_generation(worker, info)
            if info.task is Task.EMBEDDING:
                return await _measure_embedding(worker)
            return await _measure_images(worker, info)
    except trio.TooSlowError:
        raise BenchmarkError(
            f"the model did not get through its benchmark within {WITHIN_S:.0f} s: this machine "
            "is too slow for it, or too busy"
        ) from None


class SpeedCache:
    """Measured speeds in one small file. A damaged file is measured anew, not an error."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._speeds: dict[str, Speed] = {}
        if path is not None:
            self._speeds = _load(path)

    def find(self, key: str) -> Speed | None:
        return self._speeds.get(key)

    def keep(self, key: str, speed: Speed) -> None:
        self._speeds[key] = speed
        if self._path is not None:
            plain = {key: asdict(speed) for key, speed in self._speeds.items()}
            write_durably(self._path, json.dumps(plain, indent=2).encode(), mode=_PRIVATE_FILE)


def speed_key(model: Digest, hardware: Hardware, *, slots: int, threads: int, software: str) -> str:
    """What a measurement depends on."""
    facts = (model, hardware.kind, hardware.name, hardware.count, slots, threads, software)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


async def _measure_generation(worker: JobWorker, info: EngineInfo) -> Speed:
    # A quarter of the context each, so that it fits however the tokenizer cuts the words.
    words = max(1, min(_PROMPT_WORDS, info.context_tokens // 4))
    tokens = max(2, min(_OUTPUT_TOKENS, info.context_tokens // 4))

    def job(max_tokens: int, prompt_words: int) -> bytes:
        return encode(
            GenerationInput(
                max_tokens=max_tokens,
                prompt="one two " * (prompt_words // 2 + 1),
                temperature=0.0,
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


async def _measure_embedding(worker: JobWorker) -> Speed:
    payload = encode(EmbeddingInput(texts=("one two three four " * 10,) * _TEXTS))
    await _run(worker, payload, "warm-up")
    tps = await _run_together(worker, payload, 2, lambda units: units.input_tokens)
    return Speed(prefill_tps=tps, decode_tps=tps, batched_tps=tps)


async def _measure_images(worker: JobWorker, info: EngineInfo) -> Speed:
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
    has_output = False
    try:
        async with open_job(worker, f"benchmark-{name}", payload) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise BenchmarkError(f"the model fails its benchmark: {event.message}")
                if isinstance(event, Produced):
                    last_at = trio.current_time()
                    first_at = first_at if has_output else last_at
                    has_output = True
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


def _load(path: Path) -> dict[str, Speed]:
    try:
        plain = json.loads(path.read_bytes())
        return {str(key): Speed(**value) for key, value in plain.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("benchmarks_unreadable", path=str(path), error=str(error))
        return {}
