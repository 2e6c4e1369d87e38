"""Vectors of texts, or scores of pairs of them: the texts of all jobs in common passes.

A job's answer comes all at once, when the last of its texts is done. Vectors are the same whatever
else is in the pass up to rounding (about 1e-6).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
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
from capanode.engines.encoders.load import LoadedEncoder, load_encoder
from capanode.engines.encoders.pooling import pool
from capanode.engines.encoders.text_batch import TextBatch, TokenizedText
from capanode.engines.profile import Profile, device_class
from capanode.engines.tokenizer import BoundedTokenizer, load_tokenizer
from capanode.engines.weights import read_optional_json
from protocol.codec import encode
from protocol.errors import Code
from protocol.features import Feature
from protocol.limits import OUTPUT_BYTES_MAX
from protocol.messages import Task
from protocol.payload import EmbeddingInput, EmbeddingOutput, tokens_digest
from protocol.pricing import Units

# One step embeds up to this many tokens: about 100 ms on two cores. More would not make better use
# of them, and would keep a job with one short text waiting.
_STEP_TOKENS = 2048

# What no model of today exceeds, and what a step of one text may take.
_CONTEXT_TOKENS_MAX = 8192

# A text may be longer than this many characters a token only by being no text (a word piece has at
# most 100): it is refused before it is tokenized.
_TOKEN_CHARS_MAX = 128

# The same for all texts of a job together. Words are 5 characters a token, so that this many are no
# text either, and reading them takes a third of a second.
_MEAN_TOKEN_CHARS_MAX = 16

# What the answer holds beside the numbers, for each vector and for all, rounded up.
_VECTOR_OVERHEAD_BYTES = 64


@dataclass(slots=True, eq=False)
class _Job:
    job_id: str
    normalize: bool
    texts: list[TokenizedText]
    vectors: list[bytes] = field(default_factory=list)
    next_text: int = 0
    is_started: bool = False

    def __post_init__(self) -> None:
        self.vectors = [b""] * len(self.texts)

    @property
    def units(self) -> Units:
        return Units(input_tokens=sum(map(len, self.texts)))


class TextEmbedder:
    """An Engine for embeddings, and for scores of pairs where the model has a head for them."""

    def __init__(
        self,
        loaded: LoadedEncoder,
        tokenizer: BoundedTokenizer,
        *,
        slots: int,
        context_tokens: int,
        lowers_case: bool,
        device: torch.device,
    ) -> None:
        self._loaded, self._tokenizer = loaded, tokenizer
        self._lowers_case, self._device = lowers_case, device
        self._jobs: dict[str, _Job] = {}
        self._dimensions = loaded.encoder.dimensions if loaded.head is None else 1
        profile = Profile(
            engine=loaded.encoder.name, weights="fp32", compute="fp32", device=device_class(device)
        )
        self._info = EngineInfo(
            task=Task.EMBEDDING,
            slots=slots,
            context_tokens=context_tokens,
            quantization="fp32",
            features=() if loaded.head is None else (Feature.PAIR_SCORES,),
            dimensions=self._dimensions,
            profile=str(profile),
        )

    @classmethod
    def load(
        cls, model_dir: Path, *, slots: int, threads: int, device: str | torch.device = "cpu"
    ) -> "TextEmbedder":
        """Raises ModelLoadError if the directory does not hold a model that runs here."""
        torch.set_num_threads(threads)
        device = torch.device(device)
        sentence = read_optional_json(model_dir / "sentence_bert_config.json")
        with torch.inference_mode():
            loaded = load_encoder(model_dir, device)
        longest = loaded.encoder.tokens_max
        limit = sentence.get("max_seq_length")
        if limit is None:
            limit = longest
        if type(limit) is not int or not 0 < limit <= longest:
            raise ModelLoadError("sentence_bert_config.json: max_seq_length is out of range")
        limit = min(limit, _CONTEXT_TOKENS_MAX)
        tokenizer = BoundedTokenizer(
            load_tokenizer(model_dir), tokens_max=limit, token_chars_max=_TOKEN_CHARS_MAX
        )
        return cls(
            loaded,
            tokenizer,
            slots=slots,
            context_tokens=limit,
            lowers_case=sentence.get("do_lower_case") is True,
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
        if job_input.query is None and self._loaded.head is not None:
            raise EngineRefusal(
                "this model scores texts against a query: there is none", code=Code.INVALID_INPUT
            )
        if job_input.query is not None and self._loaded.head is None:
            raise EngineRefusal(
                "this model embeds texts, and scores none against a query", code=Code.INVALID_INPUT
            )
        self._check_sizes(job_input.texts, job_input.query or "")
        texts = [self._tokenize(text, job_input.query) for text in job_input.texts]
        self._jobs[job_id] = _Job(job_id, job_input.normalize, texts)

    def _tokenize(self, text: str, query: str | None) -> TokenizedText:
        if self._lowers_case:
            text, query = text.lower(), query.lower() if query else query
        if query is not None:
            return TokenizedText(*self._tokenizer.encode_pair(query, text))
        return TokenizedText(self._tokenizer.encode(text, adds_special=True), [])

    def _check_sizes(self, texts: Sequence[str], query: str) -> None:
        """Refuse by what is known before a text is looked at. Raises EngineRefusal."""
        chars = sum(map(len, texts)) + len(texts) * len(query)
        mean_max = len(texts) * self._info.context_tokens * _MEAN_TOKEN_CHARS_MAX
        if chars > max(mean_max, self._tokenizer.chars_max):
            raise EngineRefusal(
                "the texts have {chars} characters; the model takes {limit} tokens of each",
                code=Code.PROMPT_TOO_LONG,
                chars=chars,
                limit=self._info.context_tokens,
            )
        vector_bytes = 4 * self._dimensions + _VECTOR_OVERHEAD_BYTES
        if len(texts) * vector_bytes > OUTPUT_BYTES_MAX - _VECTOR_OVERHEAD_BYTES:
            raise EngineRefusal(
                "{texts} texts are too many: their vectors of {dimensions} numbers do not fit "
                "into one answer",
                code=Code.INPUT_TOO_LARGE,
                texts=len(texts),
                dimensions=self._dimensions,
            )

    def cancel(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    def step(self) -> Sequence[EngineEvent]:
        events: list[EngineEvent] = []
        gathered = self._gather(events)
        if gathered:
            with torch.inference_mode():
                self._embed(gathered)
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
                digest = tokens_digest([text.ids for text in job.texts])
                events.append(Started(job.job_id, job.units, digest))
            if job.next_text < len(job.texts):
                gathered.append((job, job.next_text))
                tokens += len(job.texts[job.next_text])
                job.next_text += 1
                turns.append(job)
        return gathered

    def _embed(self, gathered: list[tuple[_Job, int]]) -> None:
        gathered.sort(key=lambda item: len(item[0].texts[item[1]]))
        batch = TextBatch([job.texts[number] for job, number in gathered], self._device)
        loaded = self._loaded
        plain = pool(loaded.encoder.encode(batch), batch, loaded.pooling)
        if loaded.head is None:
            unit = functional.normalize(plain, dim=1)
        else:
            plain = loaded.head(plain)
            unit = plain.sigmoid()
        normalized, raw = unit.cpu().numpy(), plain.cpu().numpy()
        for row, (job, number) in enumerate(gathered):
            chosen = normalized if job.normalize else raw
            job.vectors[number] = chosen[row].astype("<f4").tobytes()
