"""A stand-in for vLLM 0.33.0, with the signatures, defaults and checks of what our engine uses:
read in its wheel's `vllm/v1/engine/llm_engine.py`, `engine/arg_utils.py`, `sampling_params.py`,
`outputs.py`, `logprobs.py`, `inputs/engine.py` and `exceptions.py`. What it computes is made up.

A model folder's `stand_in.json` says how it misbehaves, by the names in `LLMEngine`.
"""

import hashlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensInput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from capanode.sandbox.last_lock import close_sandbox
from capanode.sandbox.opening import SandboxOpening

__version__ = "0.33.0"

_BLOCK = 16
_LETTERS = 26


@dataclass
class EngineArgs:
    """Those of its fields that we set, with its defaults."""

    model: str = "Qwen/Qwen3-0.6B"
    skip_tokenizer_init: bool = False
    trust_remote_code: bool = False
    load_format: str = "auto"
    max_model_len: int | None = None
    distributed_executor_backend: str | None = None
    tensor_parallel_size: int = 1
    enable_prefix_caching: bool | None = None
    gpu_memory_utilization: float = 0.92
    max_num_seqs: int | None = None
    max_logprobs: int = 20
    disable_log_stats: bool = False
    disable_custom_all_reduce: bool = False
    worker_extension_cls: str = ""
    generation_config: str = "auto"


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None


@dataclass
class ModelConfig:
    max_model_len: int
    vocab_size: int
    dtype: str = "torch.bfloat16"
    max_logprobs: int = 20

    def get_vocab_size(self) -> int:
        return self.vocab_size


@dataclass
class _Request:
    request_id: str
    prompt: list[int]
    params: SamplingParams
    cached: int
    answer: list[int] = field(default_factory=list)


class LLMEngine:
    """`enable_multiprocessing` must stay off: the engine is to be in this process. `latest` is for
    tests."""

    latest: "LLMEngine"

    def __init__(self, engine_args: EngineArgs) -> None:
        LLMEngine.latest = self
        self.engine_args = engine_args
        folder = Path(engine_args.model)
        config = json.loads((folder / "config.json").read_text())
        told = folder / "stand_in.json"
        self.behaviour: dict[str, Any] = json.loads(told.read_text()) if told.exists() else {}
        self.model_config = ModelConfig(config["max_position_embeddings"], config["vocab_size"])
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._blocks: set[tuple[str, tuple[int, ...]]] = set()
        self.calls: list[str] = []
        self._steps = count()
        if "starts_programs" in self.behaviour:
            _start_programs()

    @classmethod
    def from_engine_args(
        cls,
        engine_args: EngineArgs,
        usage_context: object = None,
        stat_loggers: list[object] | None = None,
        enable_multiprocessing: bool = False,
    ) -> "LLMEngine":
        assert not enable_multiprocessing
        if "unsupported" in (Path(engine_args.model) / "config.json").read_text():
            raise ValueError("Model architectures ['Unsupported'] are not supported for now.")
        return cls(engine_args)

    def add_request(
        self,
        request_id: str,
        prompt: TokensInput,
        params: SamplingParams,
        arrival_time: float | None = None,
        lora_request: object = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: dict[str, str] | None = None,
        priority: int = 0,
        session_id: str | None = None,
        prompt_text: str | None = None,
        kv_hints: object = None,
    ) -> str:
        assert prompt["type"] == "token"
        ids = prompt["prompt_token_ids"]
        if len(ids) >= self.model_config.max_model_len:
            raise VLLMValidationError("The decoder prompt is longer than the maximum model length")
        vocab = self.model_config.vocab_size
        if any(token >= vocab for token in params.logit_bias or {}):
            raise VLLMValidationError("logit_bias contains out-of-vocab token ids")
        if (params.logprobs or 0) > self.engine_args.max_logprobs:
            raise VLLMValidationError("Requested sample logprobs are too many")
        cached = 0
        salt = prompt.get("cache_salt", "")
        for end in range(_BLOCK, len(ids), _BLOCK):
            block = (salt, tuple(ids[:end]))
            if block in self._blocks and params.prompt_logprobs is None:
                cached = end
            self._blocks.add(block)
        self._waiting.append(_Request(request_id, list(ids), params, cached))
        return f"{request_id}-12345678"

    def abort_request(self, request_ids: list[str], internal: bool = False) -> None:
        self.calls += [f"abort {request_id}" for request_id in request_ids]
        for queue in (self._waiting, self._running):
            queue[:] = [one for one in queue if one.request_id not in request_ids]

    def has_unfinished_requests(self) -> bool:
        return bool(self._waiting or self._running)

    def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        self.calls.append(f"rpc {method}")
        return [None] * self.engine_args.tensor_parallel_size

    def step(self) -> list[RequestOutput]:
        if next(self._steps) in self.behaviour.get("idle_steps", ()):
            return []
        slots = self.engine_args.max_num_seqs or 256
        while self._waiting and len(self._running) < slots:
            self._running.append(self._waiting.pop(0))
        outputs = [self._advance(request) for request in list(self._running)]
        for request in self._running:
            self._misbehave(request)
        self._running = [
            request
            for request, output in zip(self._running, outputs, strict=True)
            if not output.finished
        ]
        return outputs

    def _misbehave(self, request: _Request) -> None:
        spelled = bytes(token for token in request.prompt if token < 128).decode()
        for word, error in self.behaviour.get("raises", {}).items():
            if word in spelled:
                raise RuntimeError(error)

    def _advance(self, request: _Request) -> RequestOutput:
        params, is_first = request.params, not request.answer
        new: list[int] = []
        end: str | None = None
        for _ in range(self.behaviour.get("tokens_per_step", 1)):
            token = self._next(request)
            request.answer.append(token)
            new.append(token)
            end = self._end(request, token)
            if end is not None:
                break
        assert params.output_kind is RequestOutputKind.DELTA
        scores = None
        if params.logprobs is not None:
            scores = [_scores(token, params.logprobs) for token in new]
        prompt_scores = None
        if params.prompt_logprobs is not None and is_first:
            alternatives = params.prompt_logprobs
            prompt_scores = [None, *(_scores(one, alternatives) for one in request.prompt[1:])]
        completion = CompletionOutput(0, "", new, 0.0, scores, end)
        output = RequestOutput(
            request.request_id,
            None,
            request.prompt,
            prompt_scores,
            [completion],
            end is not None,
            request.cached,
        )
        for name, value in self.behaviour.get("output", {}).items():
            setattr(output, name, value)
        for name, value in self.behaviour.get("completion", {}).items():
            setattr(completion, name, value)
        return output

    def _next(self, request: _Request) -> int:
        params = request.params
        again = self.behaviour.get("tries_again")
        if again is not None and again.encode() in bytes(request.prompt):
            return ord("r" if _is_refused(len(request.answer)) else "w")
        if params.logit_bias:
            return int(max(params.logit_bias.items(), key=lambda item: item[1])[0])
        seed = params.seed if params.temperature >= 1e-5 else None
        told = repr((request.prompt, request.answer, seed)).encode()
        number = int.from_bytes(hashlib.sha256(told).digest()[:4], "big")
        stops = params.stop_token_ids
        if stops and number % 7 == 0 and len(request.answer) >= params.min_tokens:
            return int(stops[0])
        return 97 + number % _LETTERS

    def _end(self, request: _Request, token: int) -> str | None:
        params, count_ = request.params, len(request.answer)
        if count_ >= params.min_tokens and token in params.stop_token_ids:
            return "stop"
        longest = self.model_config.max_model_len
        is_full = len(request.prompt) + count_ >= longest
        return "length" if is_full or count_ >= (params.max_tokens or 0) else None


def _scores(token: int, alternatives: int) -> dict[int, Logprob]:
    """As vLLM lays them out: the token itself first, then the likeliest by their ranks."""
    likeliest = [120, token, *range(100, 120)]
    found = {token: Logprob(-0.5, 2)}
    for rank, other in enumerate(likeliest[:alternatives], 1):
        found[other] = Logprob(-0.25 * rank, rank)
    return found


def _is_refused(number: int) -> bool:
    """Attempts of what a start may do and a serving engine may not."""
    attempts: tuple[Callable[[], object], ...] = (
        os.fork,
        lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        lambda: socket.socket(socket.AF_INET),
        lambda: close_sandbox(SandboxOpening.START, gpu=False),
        lambda: os.kill(-1, 0),  # No other process is there.
    )
    try:
        attempts[number]()
    except OSError:
        return True
    return False


def _start_programs() -> None:
    """What vLLM does while it starts: a program that looks at a model's class, a lock that
    processes share, and a socket of the loopback."""
    done = subprocess.run(
        [sys.executable, "-c", "print('here')"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "here\n"
    multiprocessing.Lock()
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    # It goes on after the start, if nobody ends it.
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
