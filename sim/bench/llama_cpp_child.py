"""llama.cpp with continuous batching, for `sim.bench.llama_cpp`: run by the Python of another
environment, it imports nothing of ours.

Each line of stdin asks and is answered by a line of stdout, both JSON. A question has `prompts`,
`answers` (how many tokens each), `steps_between_arrivals`, `threads` and `is_unified` (whether
streams share one range of the KV cache); the answer has `wall_s`, `cpu_s` and `tokens`.
"""

import json
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

STREAMS_MAX = 32
STREAM_TOKENS_MAX = 1_024
_BATCH_TOKENS_MAX = 2_048
# What one pass takes: as much as a prompt whose prefill is timed.
_PASS_TOKENS_MAX = 512


@dataclass(slots=True)
class _Stream:
    number: int
    left: int  # tokens that are still to be answered
    pending: list[int]  # tokens that the cache does not hold yet
    position: int = 0
    place: int = -1  # of its last token in the batch, where its logits will be


class _Model:
    def __init__(self, path: str) -> None:
        self._api: Any = import_module("llama_cpp")
        self._numpy: Any = import_module("numpy")
        self._silent = self._api.llama_log_callback(lambda level, text, data: None)
        self._api.llama_log_set(self._silent, None)
        self._api.llama_backend_init()
        model = self._api.llama_model_load_from_file(
            path.encode(), self._api.llama_model_default_params()
        )
        if not model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._model = model
        self._words = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(model))
        self._contexts: dict[bool, Any] = {}
        self._batch = self._api.llama_batch_init(_BATCH_TOKENS_MAX, 0, 1)

    def answer(self, asked: dict[str, Any]) -> dict[str, float]:
        context = self._context(asked["is_unified"])
        self._api.llama_set_n_threads(context, asked["threads"], asked["threads"])
        self._api.llama_memory_clear(self._api.llama_get_memory(context), True)
        waiting = [
            _Stream(number, left, list(prompt))
            for number, (prompt, left) in enumerate(
                zip(asked["prompts"], asked["answers"], strict=True)
            )
        ][::-1]
        running: list[_Stream] = []
        tokens = steps = 0
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        while waiting or running:
            if waiting and (steps % asked["steps_between_arrivals"] == 0 or not running):
                running.append(waiting.pop())
            self._step(context, running)
            tokens += len(running)
            running = [stream for stream in running if stream.left]
            steps += 1
        return {
            "wall_s": time.perf_counter() - began_s,
            "cpu_s": time.process_time() - cpu_began_s,
            "tokens": tokens,
        }

    def _context(self, is_unified: bool) -> Any:
        if is_unified not in self._contexts:
            wanted = self._api.llama_context_default_params()
            wanted.n_ctx = STREAMS_MAX * STREAM_TOKENS_MAX
            wanted.n_seq_max = STREAMS_MAX
            wanted.n_batch, wanted.n_ubatch = _BATCH_TOKENS_MAX, _PASS_TOKENS_MAX
            wanted.kv_unified = is_unified
            self._contexts[is_unified] = self._api.llama_init_from_model(self._model, wanted)
        return self._contexts[is_unified]

    def _step(self, context: Any, streams: list[_Stream]) -> None:
        """One pass over the next tokens of all streams, each of which gets its likeliest token."""
        batch = self._batch
        batch.n_tokens = 0
        for stream in streams:
            for token in stream.pending:
                place = batch.n_tokens
                batch.token[place], batch.pos[place] = token, stream.position
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, stream.number
                batch.logits[place] = 0
                batch.n_tokens += 1
                stream.position += 1
            stream.place = batch.n_tokens - 1
            batch.logits[stream.place] = 1
        if self._api.llama_decode(context, batch):
            raise SystemExit("llama.cpp could not decode a batch")
        for stream in streams:
            pointer = self._api.llama_get_logits_ith(context, stream.place)
            logits = self._numpy.ctypeslib.as_array(pointer, shape=(self._words,))
            stream.pending = [int(logits.argmax())]
            stream.left -= 1


def main() -> None:
    model = _Model(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(model.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
