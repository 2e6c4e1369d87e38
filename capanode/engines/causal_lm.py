"""Generation with continuous batching: jobs come and go at any step, every step serves all of them.

A step is one pass: either chunks of waiting prompts (which gives the first tokens) or one token for
every running answer, with those that may follow it (`drafts`). The two alternate while both have
work, so that a long prompt slows running answers down but never stops them.

Determinism: a job's tokens depend on its input and seed. In bfloat16 on CPU they do so bit for bit
whatever else runs, as long as no more than `INVARIANT_ROWS` jobs decode together: prompts are cut
into chunks at fixed places, every kernel computes a row alike whatever is beside it, and an answer
that goes on, after a preemption or from another node, is replayed as it was decoded. What may
differ in the last bit, and so in a near tie between two tokens, is the same job on another kind of
CPU.
"""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from capanode.engines.answering import accept_tokens
from capanode.engines.attending import JobCache, kernel_of, next_attention
from capanode.engines.attention import (
    DraftAttention,
    NextAttention,
    PrefillChunk,
    ReplayAttention,
)
from capanode.engines.base import (
    EngineEvent,
    EngineInfo,
    EngineInput,
)
from capanode.engines.cache_budget import cache_budget
from capanode.engines.decoder import DecoderModel
from capanode.engines.drafts import DraftedStep, plan_drafts
from capanode.engines.exact_logits import ExactLogits
from capanode.engines.families import read_decoder_config
from capanode.engines.generation import FinishReason, Generation
from capanode.engines.generation_reader import GenerationReader, ReadGeneration
from capanode.engines.graph_steps import GraphSteps, capture_cuda, runs_ahead
from capanode.engines.kv_cache import KvCache
from capanode.engines.linear import INVARIANT_ROWS
from capanode.engines.paged_cache import PagedCache
from capanode.engines.paged_prefixes import PagedPrefixes
from capanode.engines.prefix_cache import PrefixCache
from capanode.engines.profile import decoder_profile
from capanode.engines.slots import Slots
from capanode.engines.token_choice import choose_next, score_next, score_prompt
from capanode.engines.varlen_plain import plain_varlen
from capanode.engines.weight_scheme import read_weight_scheme
from capanode.engines.weights import Weights, dtype_here, read_json
from protocol.generation import TokenScore
from protocol.messages import Task

# Prompts are prefilled in chunks of this many tokens. Bigger ones are hardly more efficient (0.25
# ms a token on two cores) and would hold running answers up for longer than about 35 ms.
PREFILL_CHUNK_TOKENS = 128

# Of an answer that is checked, in one pass: beside it each token may take 5 ms, where its filters
# need the vocabulary sorted.
CHECKED_CHUNK_TOKENS = 16

# While no answer waits for its next token, one pass may take more chunks.
_IDLE_PASS_TOKENS = 4 * PREFILL_CHUNK_TOKENS

# On a GPU fewer tokens do not fill it, and so many take about 0.1 s of an 8B model.
_PAGED_CHUNK_TOKENS = 2048

# A job is admitted only if the running ones could each go on for this long before one of them would
# be preempted: to resume it means to prefill again.
_ADMISSION_MARGIN_TOKENS = 64


class CausalLM:
    """An Engine for generation."""

    def __init__(
        self,
        model: DecoderModel,
        cache: JobCache,
        reader: GenerationReader,
        *,
        cache_tokens: int,
        drafts: bool = True,
    ) -> None:
        """`drafts` are made on a CPU only: a GPU's steps run ahead of what they would need."""
        slots = cache.shape.rows - 1
        self._drafts = drafts and isinstance(cache, KvCache)
        self._model, self._cache, self._reader = model, cache, reader
        self._cache_tokens = cache_tokens
        self._padding_row = slots
        self._prefixes: PrefixCache | PagedPrefixes
        if isinstance(cache, PagedCache):
            self._chunk_tokens = self._idle_pass_tokens = _PAGED_CHUNK_TOKENS
            self._prefixes = PagedPrefixes(cache)
        else:
            self._chunk_tokens, self._idle_pass_tokens = PREFILL_CHUNK_TOKENS, _IDLE_PASS_TOKENS
            pages = cache_tokens // PREFILL_CHUNK_TOKENS
            self._prefixes = PrefixCache(cache, page_tokens=PREFILL_CHUNK_TOKENS, pages=pages)
        self._slots = Slots(cache, slots)
        self._waiting: deque[Generation] = deque()
        self._jobs: dict[str, Generation] = {}
        # Answers that take no pass of the model.
        self._ready: list[EngineEvent] = []
        self._steps = _steps_of(model, cache)
        self._attention: NextAttention | None = None
        self._was_prefill = False
        self._info = EngineInfo(
            task=Task.CAUSAL_LM,
            slots=slots,
            context_tokens=cache.shape.context_tokens,
            quantization=model.quantization,
            profile=str(
                decoder_profile(
                    model.weights_name, model.dtype, kv=cache.shape.dtype, device=model.device
                )
            ),
            features=reader.features,
            chat_format=reader.chat_format,
        )

    @classmethod
    def load(
        cls,
        model_dir: Path,
        *,
        slots: int,
        threads: int,
        device: str | torch.device = "cpu",
        context_tokens: int | None = None,
        cache_bytes: int | None = None,
        drafts: bool = True,
    ) -> "CausalLM":
        """Without `drafts` an answer takes a step for each of its tokens, which are the same.
        Raises ModelLoadError if the directory does not hold a model that runs here."""
        torch.set_num_threads(threads)
        device = torch.device(device)
        plain = read_json(model_dir / "config.json")
        config, scheme = read_decoder_config(plain), read_weight_scheme(plain)
        dtype = dtype_here(config.dtype_name, device)
        budget = cache_budget(
            config, dtype, slots, device, context_tokens=context_tokens, cache_bytes=cache_bytes
        )
        shape = budget.shape
        reader = GenerationReader(
            model_dir,
            plain,
            context_tokens=shape.context_tokens,
            vocab=config.vocab_size,
        )
        with torch.inference_mode():
            weights = Weights(model_dir)
            model = DecoderModel(
                config,
                weights,
                device=device,
                dtype=dtype,
                context_tokens=shape.context_tokens,
                scheme=scheme,
                slots=slots,
            )
            cache: JobCache = (
                PagedCache(shape, pages=budget.pages, device=device)
                if budget.pages
                else KvCache(shape, device=device)
            )
            model.warm_up(slots, _IDLE_PASS_TOKENS)
            return cls(model, cache, reader, cache_tokens=budget.tokens, drafts=drafts)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def is_idle(self) -> bool:
        return not self._jobs and not self._ready

    def slow_reading(self, job_input: EngineInput) -> Callable[[], ReadGeneration] | None:
        return self._reader.slow_reading(job_input)

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        """Raises EngineRefusal: PROMPT_TOO_LONG or INVALID_INPUT.

        `max_tokens` bounds what this job generates; tokens that came as `prefix_tokens` are not
        counted. The answer also ends where the context is full. The worker's loop gives each input
        a seed; without one it is 0.
        """
        read = self._reader.take(job_input)
        assert job_id not in self._jobs, "the parent names each job once"
        if read.job_input.tokenizes_only:
            self._ready += self._reader.tokenized(job_id, read)
            return
        job = self._reader.job(job_id, read)
        self._jobs[job_id] = job
        self._waiting.append(job)

    def cancel(self, job_id: str) -> None:
        self._ready = [event for event in self._ready if event.job_id != job_id]
        job = self._jobs.get(job_id)
        if job is not None:
            with torch.inference_mode():  # Rows of the cache may move.
                self._forget(job)

    def step(self) -> Sequence[EngineEvent]:
        with torch.inference_mode():
            events, self._ready = self._ready, []
            events += self._admit()
            is_turn = not (self._was_prefill and self._slots.decoding)
            self._was_prefill = bool(self._slots.prefilling) and is_turn
            if self._was_prefill:
                events += self._take_in()
            elif self._slots.decoding:
                events += self._decode()
        return events

    def _admit(self) -> list[EngineEvent]:
        """Give rows to waiting jobs while there are rows and memory for them."""
        events: list[EngineEvent] = []
        while self._waiting and self._has_room(self._waiting[0]):
            job = self._waiting.popleft()
            if not job.is_over:
                self._slots.admit(job)
                self._prefixes.load(job)
            if not job.is_started:
                job.is_started = True
                job.cached_tokens = job.cached
                events.append(job.started)
            if job.is_over:  # Its prefix is the whole answer.
                self._forget(job)
                events.append(job.finished(FinishReason.STOP))
        self._prefixes.fit(self._cache_tokens - self._slots.token_count)
        return events

    def _has_room(self, job: Generation) -> bool:
        if self._slots.is_full:
            return False
        running = len(self._slots.decoding) + len(self._slots.prefilling)
        margin = running * _ADMISSION_MARGIN_TOKENS
        needed = self._slots.token_count + self._slots.room_of(job) + margin
        return needed <= self._cache_tokens or self._slots.is_empty

    def _take_in(self) -> list[EngineEvent]:
        """Run the next part of what waits to be in the cache, first come, first served."""
        first = self._slots.prefilling[0]
        return self._replay(first) if self._is_prompt_cached(first) else self._prefill()

    def _is_prompt_cached(self, job: Generation) -> bool:
        """What is left of the job was decoded before. A GPU promises no bits, and prefills all, as
        does a job that checks an answer."""
        return job.cached >= self._prefill_end(job)

    def _prefill_end(self, job: Generation) -> int:
        is_exact = isinstance(self._cache, KvCache) and not job.scores_prefix
        return job.prompt_count if is_exact else len(job.tokens)

    def _replay(self, job: Generation) -> list[EngineEvent]:
        """Take the next tokens of an answer that goes on into the cache as they were decoded."""
        start = job.cached
        ids = job.tokens[start : start + INVARIANT_ROWS]
        chunk = PrefillChunk(job.row, start, len(ids))
        assert isinstance(self._cache, KvCache), "where bits are not promised, all is prefilled"
        attention = ReplayAttention(self._cache, chunk, self._model.config.attention)
        logits, exact = self._model.replay(ids, start, attention)
        job.cached += len(ids)
        if job.cached < len(job.tokens):
            return []
        self._slots.activate(job)
        self._attention = None
        return self._continue([job], logits, exact)

    def _prefill(self) -> list[EngineEvent]:
        """Run the next chunks of prompts."""
        left = self._chunk_tokens if self._slots.decoding else self._idle_pass_tokens
        chunks: list[tuple[PrefillChunk, Sequence[int]]] = []
        finished: list[Generation] = []
        wanted: list[int] = []  # the chunks that end a prompt
        scored: dict[int, Generation] = {}
        taken: list[tuple[Generation, int]] = []
        coming: set[bytes | None] = set()  # pages that this pass computes
        for job in self._slots.prefilling:
            end = self._prefill_end(job)
            self._prefixes.load(job)  # What a job before it has computed since it was admitted.
            while left and job.cached < end:
                # Cut at multiples of the chunk size only: where a prompt is cut must not depend on
                # what else runs.
                key = self._prefixes.next_key(job)
                if key in coming:
                    break  # It is there to be taken over after this pass.
                size = self._next_chunk(job)
                ids = job.tokens[job.cached : min(job.cached + size, end)]
                if len(ids) > left:
                    if self._chunk_tokens == PREFILL_CHUNK_TOKENS:
                        left = 0
                        break
                    ids = ids[:left]  # Where no bits are promised, a prompt is cut anywhere.
                if job.scores_prompt and job.cached < job.input_count:
                    scored[len(chunks)] = job
                chunks.append((PrefillChunk(job.row, job.cached, len(ids)), ids))
                job.cached += len(ids)
                taken.append((job, job.cached))
                coming |= {key} - {None}
                left = left - len(ids) if size == self._chunk_tokens else 0
            if job.cached == len(job.tokens):
                finished.append(job)
                wanted.append(len(chunks) - 1)
            if not left:
                break
        if not chunks:
            return []
        logits, exact, hidden = self._model.prefill(
            chunks,
            self._cache,
            padding_row=self._padding_row,
            wanted=wanted,
            scored=tuple(scored),
        )
        for job, end in taken:
            self._prefixes.save(job, end)
        for job in finished:
            self._slots.activate(job)
        self._attention = None
        events: list[EngineEvent] = []
        for (index, job), kept in zip(scored.items(), hidden, strict=True):
            start = chunks[index][0].start
            events += score_prompt(job, start, kept, self._model, self._reader.token_bytes)
        return events + self._continue(finished, logits, exact)

    def _decode(self) -> list[EngineEvent]:
        """Run one token of every answer."""
        self._preempt()
        jobs = self._slots.decoding
        if self._steps is not None and (self._steps.is_flying or runs_ahead(jobs)):
            return self._step_ahead(self._steps, jobs)
        if self._drafts:
            drafts = plan_drafts(jobs, self._cache_tokens - self._slots.token_count)
            if any(drafts):
                return self._decode_drafted(DraftedStep(list(jobs), drafts))
        lengths = [len(job.tokens) for job in jobs]
        if self._attention is None or not self._attention.fits(lengths):
            self._attention = next_attention(self._cache, lengths, self._model.config.attention)
        logits, exact = self._model.decode(
            [job.tokens[-1] for job in jobs], [length - 1 for length in lengths], self._attention
        )
        for job, length in zip(jobs, lengths, strict=True):
            job.cached = length
        return self._continue(list(jobs), logits, exact)

    def _decode_drafted(self, step: DraftedStep) -> list[EngineEvent]:
        """Run one token of every answer with those that may follow."""
        assert isinstance(self._cache, KvCache), "drafts are made for rows only"
        attention = DraftAttention(
            self._cache, step.lengths, self._model.config.attention, counts=step.counts
        )
        logits, exact = self._model.decode(step.tokens, step.positions, attention)
        events, ended = step.accept(logits, exact, self._reader.token_bytes)
        step.settle(self._cache)
        self._end(ended)
        return events

    def _step_ahead(self, steps: GraphSteps, jobs: Sequence[Generation]) -> list[EngineEvent]:
        """Start a token of every answer, and take those of the step before."""
        found = steps.step(jobs)
        for job, _ in found:
            job.cached = len(job.tokens)
        return self._accept([job for job, _ in found], [token for _, token in found])

    def _continue(
        self, jobs: Sequence[Generation], logits: Tensor, exact: ExactLogits | None
    ) -> list[EngineEvent]:
        """Choose each job's next token and say what came of it."""
        if not jobs:
            return []
        tokens = choose_next(jobs, logits, exact)
        return self._accept(
            jobs, tokens, score_next(jobs, logits, tokens, self._reader.token_bytes)
        )

    def _accept(
        self,
        jobs: Sequence[Generation],
        tokens: Sequence[int],
        scores: Sequence[TokenScore | None] = (),
    ) -> list[EngineEvent]:
        """Take each job's next token, with its score where there is one."""
        events, ended = accept_tokens(jobs, tokens, scores or [None] * len(jobs))
        self._end(ended)
        return events

    def _end(self, ended: Sequence[Generation]) -> None:
        # From the last row down, so that no row is moved that is about to be freed.
        for job in sorted(ended, key=lambda job: job.row, reverse=True):
            self._forget(job)

    def _preempt(self) -> None:
        """If the cache is full, let the youngest answer wait, or a prompt that is not read yet: it
        is prefilled again later."""
        while self._slots.token_count > self._cache_tokens:
            if len(self._slots.decoding) > 1:
                job = min(self._slots.decoding, key=lambda job: job.output_count)
            elif self._slots.prefilling:
                job = self._slots.prefilling[-1]
            else:
                return
            self._vacate(job)
            self._waiting.appendleft(job)

    def _next_chunk(self, job: Generation) -> int:
        """How many of its next tokens one pass takes."""
        is_checked = job.scores_prefix and job.cached + self._chunk_tokens >= job.prompt_count
        return CHECKED_CHUNK_TOKENS if is_checked else self._chunk_tokens

    def _forget(self, job: Generation) -> None:
        del self._jobs[job.job_id]
        if job.row < 0:
            if job in self._waiting:
                self._waiting.remove(job)
        else:
            self._vacate(job)

    def _vacate(self, job: Generation) -> None:
        self._prefixes.leave(job)
        if self._steps is not None:
            self._steps.forget(job)
        self._slots.vacate(job)
        self._attention = None


def _steps_of(model: DecoderModel, cache: JobCache) -> GraphSteps | None:
    """Steps that run ahead, where a GPU's kernel can be captured: it cannot bend scores."""
    if not isinstance(cache, PagedCache) or cache.device.type != "cuda":
        return None
    kernel = kernel_of(cache.device)
    bends = any(rule.softcap is not None for rule in model.config.attention.layers)
    if bends or kernel is plain_varlen:
        return None
    return GraphSteps(model, cache, kernel, capture=capture_cuda)
