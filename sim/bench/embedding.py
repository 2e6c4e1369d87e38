"""Our embedding engine against sentence-transformers on the same weights and texts.

Texts have from 4 to about 180 words, as many short ones as long ones by the logarithm, the lengths
that search queries and passages of documents have. Rounds of both alternate, each with other texts;
the ratio is the median of the two speeds measured next to each other. `make bench-deps` installs
what it is compared with.
"""

import importlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capanode.engines.base import Produced
from capanode.engines.embedding import TextEmbedder
from capanode.models.catalog import load_catalog
from capanode.models.library import ensure
from capanode.models.store import ModelStore
from protocol.codec import decode
from protocol.payload import EmbeddingInput, EmbeddingOutput

DEFAULT_STORE = Path(".capacloud/models")
COMPARED_WITH = Path(".capacloud/bench/sentence-transformers")
MODEL = "all-minilm-l6-v2"
THREADS = 2
ROUNDS = 5
TEXTS = 512
# What a client of the API sends at once.
TEXTS_PER_JOB = 64
# What sentence-transformers takes unless told otherwise.
THEIR_BATCH = 32

_Vectors = np.ndarray[Any, np.dtype[np.float32]]
_Side = Callable[[Sequence[str]], _Vectors]

_SEED = 11
_WORDS = ("the", "of", "and", "market", "node", "price", "river", "history", "engine", "copper")


def run(
    store: Path = DEFAULT_STORE, *, texts: int = TEXTS, rounds: int = ROUNDS
) -> dict[str, float]:
    """Texts per second; `embedding_ratio` is ours to theirs, `worst_cosine` between vectors of the
    same texts. Where sentence-transformers is not installed, ours alone."""
    model_dir = ensure(ModelStore(store), load_catalog(), MODEL).path
    engine = TextEmbedder.load(model_dir, slots=4, threads=THREADS)
    sides: dict[str, _Side] = {"ours": lambda given: _ours(engine, given)}
    theirs = _theirs(model_dir)
    if theirs is not None:
        sides["sentence_transformers"] = theirs
    rng = random.Random(_SEED)
    warm = _texts(TEXTS_PER_JOB, rng)
    vectors = [side(warm) for side in sides.values()]
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        given = _texts(texts, rng)
        for name in sorted(sides, reverse=number % 2 == 1):
            began_s = time.perf_counter()
            sides[name](given)
            speeds[name].append(texts / (time.perf_counter() - began_s))
    figures = {f"{name}_texts_per_s": statistics.median(found) for name, found in speeds.items()}
    if theirs is not None:
        pairs = zip(speeds["ours"], speeds["sentence_transformers"], strict=True)
        figures["embedding_ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
        figures["worst_cosine"] = float((vectors[0] * vectors[1]).sum(1).min())
    return figures


def _theirs(model_dir: Path) -> _Side | None:
    if not COMPARED_WITH.is_dir():
        return None
    sys.path.append(str(COMPARED_WITH))
    transformer = importlib.import_module("sentence_transformers").SentenceTransformer
    torch.set_num_threads(THREADS)
    model = transformer(str(model_dir), device="cpu")

    def encode(texts: Sequence[str]) -> _Vectors:
        return np.asarray(
            model.encode(
                list(texts),
                batch_size=THEIR_BATCH,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        )

    return encode


def _ours(engine: TextEmbedder, texts: Sequence[str]) -> _Vectors:
    """All jobs wait from the start, as when many clients ask at once."""
    for start in range(0, len(texts), TEXTS_PER_JOB):
        engine.submit(f"{start:06}", EmbeddingInput(tuple(texts[start : start + TEXTS_PER_JOB])))
    found: dict[str, bytes] = {}
    while not engine.is_idle:
        events = engine.step()
        found |= {event.job_id: event.data for event in events if isinstance(event, Produced)}
    outputs = (decode(EmbeddingOutput, found[job_id]) for job_id in sorted(found))
    return np.stack([np.frombuffer(v, "<f4") for output in outputs for v in output.vectors])


def _texts(count: int, rng: random.Random) -> list[str]:
    return [" ".join(rng.choices(_WORDS, k=int(2 ** rng.uniform(2, 7.5)))) for _ in range(count)]
