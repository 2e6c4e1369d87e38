"""vLLM as a source of tokens (`capacloud[vllm]`): the optional engine of nodes with GPUs.

vLLM gets token ids and says token ids. Prompts, text, stop strings, ends, counts and windows are
ours, as with every other engine. Its sampler is its own (`sampler=vllm` in the profile): the same
seed gives the same answer at the same node as far as vLLM says so, and no check of an answer by
`gumbel-1` applies, so the offer lists neither that check nor enforced formats. An answer that
goes on from another node is prompt and answer in one. Several cards are vLLM's tensor parallelism.

**Not seen on a GPU by us**: see `capanode.engines.vllm_start`.
"""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from capanode.engines.answering import accept_tokens
from capanode.engines.base import (
    EngineEvent,
    EngineInfo,
    EngineInput,
    EngineRefusal,
    Failed,
    Produced,
)
from capanode.engines.generation import FinishReason, Generation
from capanode.engines.generation_reader import GenerationReader, ReadGeneration
from capanode.engines.profile import Profile, device_class
from capanode.engines.scores import prompt_blocks
from capanode.engines.vllm_outputs import OutputReader, VllmDelta, VllmFault, Wanted
from capanode.engines.vllm_sampling import sampling_fields
from capanode.engines.vllm_start import VllmProcess, start_vllm
from capanode.engines.weight_scheme import read_weight_scheme
from capanode.engines.weights import read_json
from protocol.errors import Code
from protocol.generation import GenerationInput, TokenBias
from protocol.messages import Task

SAMPLER = "vllm"

# Requests that make vLLM compile what jobs of any kind may need, while it still may.
_WARM_UP = (
    GenerationInput(max_tokens=4, prompt_tokens=(1, 2, 3), temperature=0.0),
    GenerationInput(max_tokens=4, prompt_tokens=(1, 2, 3), seed=1, logprobs=2, prompt_logprobs=2),
    GenerationInput(
        max_tokens=4,
        prompt_tokens=(2, 3),
        seed=1,
        top_p=0.9,
        top_k=4,
        min_p=0.01,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        repetition_penalty=1.1,
        min_tokens=2,
        logit_bias=(TokenBias(1, 1.0),),
    ),
)


class VllmLM:
    """An Engine for generation."""

    def __init__(self, process: VllmProcess, reader: GenerationReader, info: EngineInfo) -> None:
        self._process, self._reader, self._info = process, reader, info
        self._outputs = OutputReader(reader.token_bytes, process.vocab)
        self._ready: list[EngineEvent] = []
        # vLLM's names of requests are ours: none is used twice, none is a stranger's word.
        self._numbers = count()
        self._requests: dict[str, Generation] = {}
        self._names: dict[str, str] = {}  # of each job's request

    @classmethod
    def load(
        cls,
        model_dir: Path,
        *,
        slots: int,
        threads: int,
        device: str | torch.device = "cpu",
    ) -> "VllmLM":
        """Raises ModelLoadError, and what vLLM raises for what it does not load."""
        torch.set_num_threads(threads)
        device = torch.device(device)
        plain = read_json(model_dir / "config.json")
        scheme = read_weight_scheme(plain)
        process = start_vllm(model_dir, slots=slots, device=device)
        reader = GenerationReader(
            model_dir,
            plain,
            context_tokens=process.context_tokens,
            vocab=process.vocab,
            chooses=False,
        )
        compute = str(process.engine.model_config.dtype).removeprefix("torch.")
        weights = scheme.name if scheme is not None else _SHORT_NAMES.get(compute, compute)
        profile = Profile(
            engine=f"vllm/{process.version}",
            weights=weights,
            compute=_SHORT_NAMES.get(compute, compute),
            device=device_class(device),
            sampler=SAMPLER,
        )
        info = EngineInfo(
            task=Task.CAUSAL_LM,
            slots=slots,
            context_tokens=process.context_tokens,
            quantization=weights,
            profile=str(profile),
            features=reader.features,
            chat_format=reader.chat_format,
        )
        engine = cls(process, reader, info)
        engine._warm_up()
        if process.cards > 1:
            process.engine.collective_rpc("close_sandbox")
        return engine

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def is_idle(self) -> bool:
        return not self._requests and not self._ready

    def slow_reading(self, job_input: EngineInput) -> Callable[[], ReadGeneration] | None:
        return self._reader.slow_reading(job_input)

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        """Raises EngineRefusal: PROMPT_TOO_LONG, INVALID_INPUT, or MODEL_UNAVAILABLE for what only
        other engines do."""
        read = self._reader.take(job_input)
        if read.job_input.tokenizes_only:
            self._ready += self._reader.tokenized(job_id, read)
            return
        job = self._reader.job(job_id, read)
        if job.is_over:  # Its prefix is the whole answer.
            self._ready += [job.started, job.finished(FinishReason.STOP)]
            return
        self._add(job, read.job_input)

    def cancel(self, job_id: str) -> None:
        self._ready = [event for event in self._ready if event.job_id != job_id]
        name = self._names.get(job_id)
        if name is not None:
            self._forget(name)
            self._process.engine.abort_request([name])

    def step(self) -> Sequence[EngineEvent]:
        """One step of vLLM. Raises VllmFault, MemoryError, and what vLLM raises."""
        events, self._ready = self._ready, []
        if not self._requests:
            return events
        for output in self._step():
            job = self._requests.get(output.request_id)
            if job is not None:
                events += self._hear(output.request_id, job, output)
        return events

    def _add(self, job: Generation, job_input: GenerationInput) -> None:
        fields = sampling_fields(job, job_input, self._process.vocab)
        name = f"r{next(self._numbers)}"
        # Without a salt of its own a prompt would be shared with all others that have none.
        salt = job.cache_salt or name
        try:
            prompt = self._process.tokens_input(list(job.tokens), cache_salt=salt)
            self._process.engine.add_request(name, prompt, self._process.sampling_params(**fields))
        except self._process.refusal:
            # Its words may quote the input.
            raise EngineRefusal(
                "the engine does not take these settings", code=Code.INVALID_INPUT
            ) from None
        self._requests[name], self._names[job.job_id] = job, name

    def _step(self) -> Sequence[Any]:
        try:
            outputs: Sequence[Any] = self._process.engine.step()
        # Put into a word of ours where it is of memory, and raised again else.
        except Exception as error:
            if "out of memory" in str(error):
                raise MemoryError("a GPU is out of memory") from error
            raise
        return outputs

    def _hear(self, name: str, job: Generation, output: Any) -> list[EngineEvent]:
        wanted = Wanted(job.tokens[: job.input_count], job.logprobs, job.prompt_logprobs)
        delta = self._outputs.read(output, wanted)
        events = self._start(job, delta) if not job.is_started else []
        for token, score in zip(delta.tokens, delta.scores, strict=True):
            made, ended = accept_tokens([job], [token], [score])
            events += made
            if ended:
                self._leave(name, is_over=delta.end is not None)
                return events
        if delta.end is not None:
            self._forget(name)
            events += _end_of(job, delta.end)
        return events

    def _start(self, job: Generation, delta: VllmDelta) -> list[EngineEvent]:
        """Its prompt has been read."""
        # Some token of a prompt is always computed: the first of the answer follows from it.
        if not 0 <= delta.cached_tokens < job.input_count:
            raise VllmFault("more of a prompt was cached than there is")
        if job.scores_prompt and not delta.prompt:
            raise VllmFault("the scores of a prompt are missing")
        job.is_started, job.cached_tokens = True, delta.cached_tokens
        events: list[EngineEvent] = [job.started]
        if delta.prompt:
            job.scored = job.input_count
            assert job.prompt_logprobs is not None
            for block in prompt_blocks(delta.prompt, job.prompt_logprobs):
                produced = job.take_prompt_scores(block)
                events += [] if produced is None else [produced]
        return events

    def _leave(self, name: str, *, is_over: bool) -> None:
        """A job has ended by our rules; vLLM may not know it yet."""
        self._forget(name)
        if not is_over:
            self._process.engine.abort_request([name])

    def _forget(self, name: str) -> None:
        del self._names[self._requests.pop(name).job_id]

    def _warm_up(self) -> None:
        for number, job_input in enumerate(_WARM_UP):
            self.submit(f"warm-up {number}", job_input)
        while not self.is_idle:
            self.step()


def _end_of(job: Generation, end: str) -> list[EngineEvent]:
    """What a job is told that vLLM ended, and our rules did not."""
    if end == "length":  # Its context is full.
        held = job.answer.finish()
        last = [Produced(job.job_id, (), held)] if held else []
        return [*last, job.finished(FinishReason.LENGTH)]
    # Of its words `stop` belongs to tokens that end an answer by our rules, too, and `abort`,
    # `error` and `repetition` to no answer that is whole.
    return [Failed(job.job_id, Code.INTERNAL, "the engine gave the answer up", job.units)]


_SHORT_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
