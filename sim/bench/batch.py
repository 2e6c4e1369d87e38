"""What a batch costs beside its work: embedding lines from the upload to the answers, against the
same engine called in this process; and how long batches take on a simulated day of idle seats.

Both sides embed the same texts with the same model, slots and threads, one after the other: half of
the engine's rounds come before the batch and half after it, so that a noisy moment hits both. The
buyer is a real HTTP client; its own work counts against us, as it would for any user.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trio

from capanode.engines.base import Completed
from capanode.engines.embedding import TextEmbedder
from capanode.models.catalog import load_catalog
from capanode.models.library import ensure
from capanode.models.store import ModelStore
from coordinator.batches.pieces import GROUP_TEXTS_MAX
from protocol.payload import EmbeddingInput
from sim.bench.batch_day import WHOLE_DAY, DaySize, run_day
from sim.demo import EMBEDDING_MODEL
from sim.latency import LATENCY_CLASSES
from sim.network import NodePlan, open_network
from sim.opening import open_buyer

DEFAULT_STORE = Path(".capacloud/models")
SLOTS = 8
THREADS = 2
_POLL_S = 0.05
_WITHIN_S = 600.0
_ENDPOINT = "/v1/embeddings"


@dataclass(frozen=True, slots=True)
class BatchSize:
    """How much is measured."""

    lines: int = 10_000
    day: DaySize = WHOLE_DAY


SMALL = BatchSize(300, DaySize(batches=4, lines_median=20, lines_max=50))


def run(size: BatchSize | None = None, store: Path = DEFAULT_STORE) -> dict[str, float]:
    """Start a coordinator and one node, measure, and stop them; then the day."""
    size = size or BatchSize()
    model = ensure(ModelStore(store), load_catalog(), EMBEDDING_MODEL)
    engine = TextEmbedder.load(model.path, slots=SLOTS, threads=THREADS)
    with tempfile.TemporaryDirectory(prefix="capacloud-bench-") as folder:
        figures = trio.run(_measure, engine, Path(folder), store.absolute(), size.lines)
    with tempfile.TemporaryDirectory(prefix="capacloud-bench-") as folder:
        return figures | run_day(Path(folder), size.day)


async def _measure(engine: TextEmbedder, folder: Path, store: Path, lines: int) -> dict[str, float]:
    plan = NodePlan(
        "node-1",
        (EMBEDDING_MODEL,),
        input_per_mtok="0.02",
        output_per_mtok="0.06",
        image="0.0001",
        latency=LATENCY_CLASSES[0],
        slots=SLOTS,
        threads=THREADS,
    )
    texts = list(_texts(lines))
    async with open_network(folder, store) as network:
        await network.start_coordinator()
        await network.start_node(plan)
        key = await open_buyer(network, nodes=1)
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(
            base_url=network.endpoint.http, headers=headers, timeout=60, trust_env=False
        ) as http:
            # A node earns its seats by its first jobs; and both sides have loaded what they need.
            await _run_batch(http, texts[: lines // 10])
            _embed(engine, texts[: lines // 10])
            half = lines // 2
            alone_s = _embed(engine, texts[:half])
            batch_s = await _run_batch(http, texts)
            alone_s += _embed(engine, texts[half:])
    return {
        "batch_ratio": alone_s / batch_s,
        "batch_lines_per_s": lines / batch_s,
        "alone_lines_per_s": lines / alone_s,
    }


def _texts(count: int) -> Iterator[str]:
    """Sentences as catalogues have them, none twice."""
    things = ("kettle", "lamp", "bicycle bell", "wool blanket", "bread knife", "garden chair")
    for number in range(count):
        thing = things[number % len(things)]
        yield f"Item {number}: a {thing} of good make, as new, with box and bill, seldom used."


def _embed(engine: TextEmbedder, texts: Sequence[str]) -> float:
    """Seconds for all of them in jobs of the size that a batch makes."""
    started_at = time.perf_counter()
    groups = [
        tuple(texts[start : start + GROUP_TEXTS_MAX])
        for start in range(0, len(texts), GROUP_TEXTS_MAX)
    ]
    for number, group in enumerate(groups):
        engine.submit(str(number), EmbeddingInput(group))
    ended = 0
    while ended < len(groups):
        ended += sum(isinstance(event, Completed) for event in engine.step())
    return time.perf_counter() - started_at


async def _run_batch(http: httpx.AsyncClient, texts: Sequence[str]) -> float:
    """Seconds from the upload to the last byte of the answers."""
    started_at = time.perf_counter()
    content = b"".join(
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": _ENDPOINT,
                "body": {
                    "model": EMBEDDING_MODEL,
                    "input": text,
                    # As the stock client asks.
                    "encoding_format": "base64",
                },
            }
        ).encode()
        + b"\n"
        for number, text in enumerate(texts)
    )
    files = {"file": ("lines.jsonl", content)}
    stored = await _answer(http, "/v1/files", data={"purpose": "batch"}, files=files)
    ask = {"input_file_id": stored["id"], "endpoint": _ENDPOINT, "completion_window": "24h"}
    batch = await _answer(http, "/v1/batches", json=ask)
    with trio.fail_after(_WITHIN_S):
        while batch["status"] not in ("completed", "failed"):
            await trio.sleep(_POLL_S)
            batch = (await http.get(f"/v1/batches/{batch['id']}")).json()
    assert batch["request_counts"]["completed"] == len(texts), batch
    answers = await http.get(f"/v1/files/{batch['output_file_id']}/content")
    assert answers.content.count(b"\n") == len(texts)
    return time.perf_counter() - started_at


async def _answer(http: httpx.AsyncClient, path: str, **arguments: Any) -> dict[str, Any]:
    response = await http.post(path, **arguments)
    response.raise_for_status()
    found: dict[str, Any] = response.json()
    return found
