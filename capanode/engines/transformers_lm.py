"""Decoders that are not ours, run by the transformers library (`capacloud[transformers]`).

For models that ours cannot run. It is slow and honest about it: every job is a pass of its own, so
many jobs take as long as one after another, and few are taken at once. A job's tokens do not depend
on what runs beside it. No code of a model's repository is run, and no pickle is read.
"""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capanode.engines.answering import accept_tokens
from capanode.engines.base import (
    EngineEvent,
    EngineInfo,
    EngineInput,
    ModelLoadError,
)
from capanode.engines.generation import FinishReason, Generation
from capanode.engines.generation_reader import GenerationReader, ReadGeneration
from capanode.engines.profile import DTYPE_NAMES, SAMPLER, Profile, device_class
from capanode.engines.token_choice import choose_next, score_next, score_prompt
from capanode.engines.weights import DTYPES, dtype_here, read_json
from protocol.messages import Task

ENGINE = "transformers/1"

# More would wait for each other in any case.
SLOTS_MAX = 4
CONTEXT_TOKENS_MAX = 4096
PREFILL_CHUNK_TOKENS = 128

# Keys and values of all jobs, at most.
_CACHE_BYTES = 512 * 1024 * 1024


class _KeptLogits:
    """Prompts are scored from logits, which other engines make of hidden states first."""

    def logits(self, hidden: Tensor) -> tuple[Tensor, None]:
        return hidden, None


class TransformersLM:
    """An Engine for generation."""

    def __init__(
        self, model: Any, reader: GenerationReader, *, slots: int, context_tokens: int
    ) -> None:
        """`model` is a transformers model with a head for the next token, ready to be run."""
        self._model, self._reader = model, reader
        self._waiting: deque[Generation] = deque()
        self._running: dict[str, Generation] = {}
        self._pasts: dict[str, Any] = {}  # transformers' cache of each running job
        self._ready: list[EngineEvent] = []
        name = DTYPE_NAMES[model.dtype]
        self._info = EngineInfo(
            task=Task.CAUSAL_LM,
            slots=slots,
            context_tokens=context_tokens,
            quantization=name,
            profile=str(
                Profile(
                    engine=ENGINE,
                    weights=name,
                    kv=name,
                    compute=name,
                    device=device_class(model.device),
                    sampler=SAMPLER,
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
    ) -> "TransformersLM":
        """Raises ModelLoadError if the directory does not hold a model that runs here."""
        torch.set_num_threads(threads)
        plain = read_json(model_dir / "config.json")
        model = _load_model(model_dir, plain, torch.device(device))
        context_tokens = min(_context_tokens(plain), CONTEXT_TOKENS_MAX)
        config = model.config
        # Of all heads: a model that shares keys among them takes less.
        token_bytes = 2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize
        fitting = _CACHE_BYTES // (token_bytes * context_tokens)
        reader = GenerationReader(
            model_dir,
            plain,
            context_tokens=context_tokens,
            vocab=config.vocab_size,
        )
        slots = max(1, min(slots, SLOTS_MAX, fitting))
        return cls(model, reader, slots=slots, context_tokens=context_tokens)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running and not self._ready

    def slow_reading(self, job_input: EngineInput) -> Callable[[], ReadGeneration] | None:
        return self._reader.slow_reading(job_input)

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        """Raises EngineRefusal: PROMPT_TOO_LONG or INVALID_INPUT."""
        read = self._reader.take(job_input)
        if read.job_input.tokenizes_only:
            self._ready += self._reader.tokenized(job_id, read)
            return
        self._waiting.append(self._reader.job(job_id, read))

    def cancel(self, job_id: str) -> None:
        self._ready = [event for event in self._ready if event.job_id != job_id]
        self._waiting = deque(job for job in self._waiting if job.job_id != job_id)
        self._forget(job_id)

    def step(self) -> Sequence[EngineEvent]:
        """A chunk of its prompt or one token, of every running job."""
        events, self._ready = self._ready, []
        events += self._admit()
        with torch.inference_mode():
            for job in list(self._running.values()):
                events += self._advance(job)
        return events

    def _admit(self) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        while self._waiting and len(self._running) < self._info.slots:
            job = self._waiting.popleft()
            events.append(job.started)
            if job.is_over:  # Its prefix is the whole answer.
                events.append(job.finished(FinishReason.STOP))
            else:
                self._running[job.job_id] = job
        return events

    def _advance(self, job: Generation) -> list[EngineEvent]:
        start = job.cached
        ids = job.tokens[start : start + PREFILL_CHUNK_TOKENS]
        logits = self._pass(job, ids)
        job.cached += len(ids)
        events: list[EngineEvent] = []
        pieces = self._reader.token_bytes
        if job.scores_prompt and start < job.input_count:
            events += score_prompt(job, start, logits, _KeptLogits(), pieces)
        if job.cached < len(job.tokens):
            return events
        last = logits[-1:]
        tokens = choose_next([job], last, None)
        made, ended = accept_tokens([job], tokens, score_next([job], last, tokens, pieces))
        for one in ended:
            self._forget(one.job_id)
        return events + made

    def _pass(self, job: Generation, ids: Sequence[int]) -> Tensor:
        """Logits after each of `ids`, [n, vocab]."""
        made = self._model(
            input_ids=torch.tensor([ids], device=self._model.device),
            past_key_values=self._pasts.get(job.job_id),
            use_cache=True,
            # 0 keeps the logits of all tokens.
            logits_to_keep=0 if job.scores_prompt else 1,
        )
        self._pasts[job.job_id] = made.past_key_values
        logits: Tensor = made.logits[0]
        return logits

    def _forget(self, job_id: str) -> None:
        self._running.pop(job_id, None)
        self._pasts.pop(job_id, None)


def _load_model(model_dir: Path, plain: Any, device: torch.device) -> Any:
    """Raises ModelLoadError. Imported here because it takes seconds, and is an extra."""
    try:
        import transformers  # noqa: PLC0415
    except ImportError:
        raise ModelLoadError(
            "this architecture is run by transformers: pip install 'capacloud[transformers]'"
        ) from None
    if "auto_map" in plain or plain.get("quantization_config") is not None:
        raise ModelLoadError("config.json asks for code or a quantization that is not run here")
    name = plain.get("torch_dtype") or plain.get("dtype") or "float32"
    if name not in DTYPES:
        raise ModelLoadError(f"weights of type {str(name)[:32]!r} are not run here")
    # Bars on stderr would be lines of the node's log.
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=dtype_here(name, device),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    # The library raises what it likes on a config that makes no sense.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        raise ModelLoadError(f"transformers does not load it ({reason})") from error
    return model.eval().to(device)


def _context_tokens(plain: Any) -> int:
    """GPT-2 and its kin call it `n_positions`."""
    value = plain.get("max_position_embeddings", plain.get("n_positions"))
    if type(value) is not int or value < 1:
        raise ModelLoadError("config.json does not say how long a text may be")
    return value
