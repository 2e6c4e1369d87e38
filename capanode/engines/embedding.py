"""Text embeddings: the texts of all jobs in common batches, cut so that little of them is padding.

A job's answer comes all at once, when the last of its texts is done. Vectors are the same whatever
else is in the batch up to rounding (about 1e-6).
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.base import (
    Completed,
    EngineEvent,
    EngineInfo,
    EngineInput,
    EngineRefusal,
    ModelLoadError,
    Produced,
    Started,
)
from capanode.engines.bert import BertConfig, BertModel
from capanode.engines.profile import BERT, Profile, device_class
from capanode.engines.tokenizer import BoundedTokenizer, load_tokenizer
from capanode.engines.weights import Weights, read_json, read_optional_json
from protocol.codec import encode
from protocol.errors import Code
from protocol.limits import MIB, OUTPUT_BYTES_MAX
from protocol.messages import Task
from protocol.payload import EmbeddingInput, EmbeddingOutput, tokens_digest
from protocol.pricing import Units

# One step embeds up to this many tokens, padding included: about 100 ms on two cores. More would
# not make better use of them, and would keep a job with one short text waiting.
_STEP_TOKENS = 2048

# A text may be longer than this many characters a token only by being no text (a word piece has at
# most 100): it is refused before it is tokenized.
_TOKEN_CHARS_MAX = 128

# The same for all texts of a job together. Words are 5 characters a token, so that this many are no
# text either, and reading them takes a third of a second.
_MEAN_TOKEN_CHARS_MAX = 16

# Scores of every token with every other one of a text, for all heads: the context is cut to what
# fits, so that one long text cannot outgrow the worker.
_ATTENTION_BYTES_MAX = 512 * MIB

# What the answer holds beside the numbers, for each vector and for all, rounded up.
_VECTOR_OVERHEAD_BYTES = 64


class Pooling(Enum):
    """How the vectors of a text's tokens become one."""

    MEAN = auto()
    FIRST = auto()


@dataclass(slots=True, eq=False)
class _Job:
    job_id: str
    normalize: bool
    texts: list[list[int]]
    vectors: list[bytes] = field(default_factory=list)
    next_text: int = 0
    is_started: bool = False

    def __post_init__(self) -> None:
        self.vectors = [b""] * len(self.texts)

    @property
    def units(self) -> Units:
        return Units(input_tokens=sum(map(len, self.texts)))


class TextEmbedder:
    """An Engine for embeddings."""

    def __init__(
        self,
        model: BertModel,
        tokenizer: BoundedTokenizer,
        *,
        slots: int,
        context_tokens: int,
        pooling: Pooling,
        device: torch.device,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._pooling, self._device = pooling, device
        self._jobs: dict[str, _Job] = {}
        self._info = EngineInfo(
            task=Task.EMBEDDING,
            slots=slots,
            context_tokens=context_tokens,
            quantization="fp32",
            dimensions=model.dimensions,
            profile=str(
                Profile(engine=BERT, weights="fp32", compute="fp32", device=device_class(device))
            ),
        )

    @classmethod
    def load(
        cls, model_dir: Path, *, slots: int, threads: int, device: str | torch.device = "cpu"
    ) -> "TextEmbedder":
        """Raises ModelLoadError if the directory does not hold a model that runs here."""
        torch.set_num_threads(threads)
        device = torch.device(device)
        config = BertConfig.parse(read_json(model_dir / "config.json"))
        sentence = read_optional_json(model_dir / "sentence_bert_config.json")
        limit = sentence.get("max_seq_length", config.positions)
        if type(limit) is not int or not 0 < limit <= config.positions:
            raise ModelLoadError("sentence_bert_config.json: max_seq_length is out of range")
        limit = min(limit, math.isqrt(_ATTENTION_BYTES_MAX // (4 * config.heads)))
        pooling = _pooling(read_optional_json(model_dir / "1_Pooling" / "config.json"))
        with torch.inference_mode():
            model = BertModel(config, Weights(model_dir), device=device)
        return cls(
            model,
            BoundedTokenizer(
                load_tokenizer(model_dir), tokens_max=limit, token_chars_max=_TOKEN_CHARS_MAX
            ),
            slots=slots,
            context_tokens=limit,
            pooling=pooling,
            device=device,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def is_idle(self) -> bool:
        return not self._jobs

    def slow_reading(self, job_input: EngineInput) -> None:
        """See `Engine.slow_reading`: all inputs are read by `submit`."""

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        """Raises EngineRefusal: PROMPT_TOO_LONG, INPUT_TOO_LARGE or INVALID_INPUT."""
        if not isinstance(job_input, EmbeddingInput):
            raise EngineRefusal("this model embeds texts", code=Code.INVALID_INPUT)
        assert job_id not in self._jobs, "the parent names each job once"
        self._check_sizes(job_input.texts)
        texts = [self._tokenizer.encode(text, adds_special=True) for text in job_input.texts]
        self._jobs[job_id] = _Job(job_id, job_input.normalize, texts)

    def _check_sizes(self, texts: Sequence[str]) -> None:
        """Refuse by what is known before a text is looked at. Raises EngineRefusal."""
        chars = sum(map(len, texts))
        mean_max = len(texts) * self._info.context_tokens * _MEAN_TOKEN_CHARS_MAX
        if chars > max(mean_max, self._tokenizer.chars_max):
            raise EngineRefusal(
                "the texts have {chars} characters; the model takes {limit} tokens of each",
                code=Code.PROMPT_TOO_LONG,
                chars=chars,
                limit=self._info.context_tokens,
            )
        vector_bytes = 4 * self._model.dimensions + _VECTOR_OVERHEAD_BYTES
        if len(texts) * vector_bytes > OUTPUT_BYTES_MAX - _VECTOR_OVERHEAD_BYTES:
            raise EngineRefusal(
                "{texts} texts are too many: their vectors of {dimensions} numbers do not fit "
                "into one answer",
                code=Code.INPUT_TOO_LARGE,
                texts=len(texts),
                dimensions=self._model.dimensions,
            )

    def cancel(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    def step(self) -> Sequence[EngineEvent]:
        events: list[EngineEvent] = []
        with torch.inference_mode():
            for batch in _cut(self._gather(events)):
                self._embed(batch)
        for job in list(self._jobs.values()):
            if all(job.vectors):
                del self._jobs[job.job_id]
                output = EmbeddingOutput(
                    len(job.vectors[0]) // 4, tuple(job.vectors), tuple(map(len, job.texts))
                )
                events.append(Produced(job.job_id, (), "", encode(output)))
                events.append(Completed(job.job_id, "complete", job.units))
        return events

    def _gather(self, events: list[EngineEvent]) -> list[tuple[_Job, int]]:
        """Texts for this step, by job and number: one of each job in turn, so that a job with one
        text does not wait for all of a job with hundreds."""
        gathered: list[tuple[_Job, int]] = []
        turns = deque(list(self._jobs.values())[: self._info.slots])
        tokens = 0
        while turns and tokens < _STEP_TOKENS:
            job = turns.popleft()
            if not job.is_started:
                job.is_started = True
                events.append(Started(job.job_id, job.units, tokens_digest(job.texts)))
            if job.next_text < len(job.texts):
                gathered.append((job, job.next_text))
                tokens += len(job.texts[job.next_text])
                job.next_text += 1
                turns.append(job)
        return gathered

    def _embed(self, batch: Sequence[tuple[_Job, int]]) -> None:
        texts = [job.texts[number] for job, number in batch]
        longest = max(map(len, texts))
        tokens = torch.tensor(
            [text + [0] * (longest - len(text)) for text in texts], device=self._device
        )
        lengths = torch.tensor([[len(text)] for text in texts], device=self._device)
        mask = torch.arange(longest, device=self._device) < lengths
        vectors = _pool(self._model.encode(tokens, mask), mask, self._pooling)
        unit = functional.normalize(vectors, dim=1).cpu().numpy()
        plain = vectors.cpu().numpy()
        for row, (job, number) in enumerate(batch):
            chosen = unit if job.normalize else plain
            job.vectors[number] = chosen[row].astype("<f4").tobytes()


def _pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector per text from the states [texts, length, hidden] of its tokens."""
    if pooling is Pooling.FIRST:
        return hidden[:, 0]
    weights = mask[:, None].to(hidden.dtype)
    return torch.bmm(weights, hidden)[:, 0] / weights.sum(-1)


def _cut(gathered: list[tuple[_Job, int]]) -> list[list[tuple[_Job, int]]]:
    """Batches of similar length, so that a short text is not padded to the longest of all: at most
    a quarter of a batch is padding."""
    ordered = sorted(gathered, key=lambda item: len(item[0].texts[item[1]]))
    batches: list[list[tuple[_Job, int]]] = []
    filled = 0
    for job, number in ordered:
        length = len(job.texts[number])
        size = (len(batches[-1]) + 1) * length if batches else 0
        if not batches or filled + length < 0.75 * size:
            batches.append([])
            filled = 0
        batches[-1].append((job, number))
        filled += length
    return batches


def _pooling(plain: Mapping[str, Any]) -> Pooling:
    """Raises ModelLoadError for poolings that are not run here."""
    modes = {
        key for key, value in plain.items() if key.startswith("pooling_mode_") and value is True
    }
    if modes <= {"pooling_mode_mean_tokens"}:
        return Pooling.MEAN
    if modes == {"pooling_mode_cls_token"}:
        return Pooling.FIRST
    raise ModelLoadError(f"pooling by {sorted(modes)} is not run here")
