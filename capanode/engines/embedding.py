"""Text embeddings: the texts of all jobs in common batches, cut so that little of them is padding.

A job's answer comes all at once, when the last of its texts is done. Vectors are the same whatever
else is in the batch up to rounding (about 1e-6).
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from capanode.engines.base import (
    EngineEvent,
    EngineInfo,
    EngineInput,
    EngineRefusal,
    Finished,
    ModelLoadError,
    Produced,
    Started,
)
from capanode.engines.bert import BertConfig, BertModel
from capanode.engines.tokenizer import load_tokenizer
from capanode.engines.weights import Weights, read_json, read_optional_json
from protocol.codec import encode
from protocol.errors import Code
from protocol.messages import Task
from protocol.payload import EmbeddingInput, EmbeddingOutput
from protocol.pricing import Units

# One step embeds up to this many tokens, padding included: about 100 ms on two cores. More would
# not make better use of them, and would keep a job with one short text waiting.
_STEP_TOKENS = 2048

# A text may be longer than this many characters a token only by being no text (a word piece has at
# most 100): it is refused before it is tokenized.
_CHARACTERS_PER_TOKEN_MAX = 128


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
        tokenizer: Tokenizer,
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
            task=Task.EMBEDDING, slots=slots, context_tokens=context_tokens, quantization="fp32"
        )

    @classmethod
    def load(cls, model_dir: Path, *, slots: int, threads: int) -> "TextEmbedder":
        """Raises ModelLoadError if the directory does not hold a model that runs here."""
        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = BertConfig.parse(read_json(model_dir / "config.json"))
        sentence = read_optional_json(model_dir / "sentence_bert_config.json")
        limit = sentence.get("max_seq_length", config.positions)
        if type(limit) is not int or not 0 < limit <= config.positions:
            raise ModelLoadError("sentence_bert_config.json: max_seq_length is out of range")
        pooling = _pooling(read_optional_json(model_dir / "1_Pooling" / "config.json"))
        with torch.inference_mode():
            model = BertModel(config, Weights(model_dir), device=device)
        return cls(
            model,
            load_tokenizer(model_dir),
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

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        """Raises EngineRefusal: PROMPT_TOO_LONG or INVALID_INPUT."""
        if not isinstance(job_input, EmbeddingInput):
            raise EngineRefusal("this model embeds texts", code=Code.INVALID_INPUT)
        assert job_id not in self._jobs, "the parent names each job once"
        limit = self._info.context_tokens
        if max(map(len, job_input.texts)) > limit * _CHARACTERS_PER_TOKEN_MAX:
            raise EngineRefusal("a text is far too long", code=Code.PROMPT_TOO_LONG)
        texts = [encoding.ids for encoding in self._tokenizer.encode_batch(list(job_input.texts))]
        longest = max(map(len, texts))
        if longest > limit:
            raise EngineRefusal(
                f"a text has {longest} tokens; the model takes {limit}", code=Code.PROMPT_TOO_LONG
            )
        self._jobs[job_id] = _Job(job_id, job_input.normalize, texts)

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
                output = EmbeddingOutput(len(job.vectors[0]) // 4, tuple(job.vectors))
                events.append(Produced(job.job_id, (), "", encode(output)))
                events.append(Finished(job.job_id, "complete", job.units))
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
                events.append(Started(job.job_id, job.units))
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
