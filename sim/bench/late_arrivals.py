"""Requests that come while others are answered: our engine against transformers' `generate`.

The arrival process is Poisson with a fixed seed. Its mean gap is a share of what `generate` takes
for all requests as one static batch on the same machine a moment before, so that the load is the
same on a fast machine and a slow one: `_LOAD` requests come in the time in which `generate` at its
best answers one. `generate` cannot take a request into a batch that runs, so it answers all that
wait as the next static batch, left-padded; ours takes each as it comes. Both sleep when none waits.
Tokens that were asked for, per second from the first arrival to the last token.
"""

import random
import time
from collections.abc import Callable, Sequence
from itertools import accumulate

from capanode.engines.causal_lm import CausalLM
from sim.bench.streams import MixedRequest, greedy_input, produced_tokens

# More than either side serves at once: a queue forms, and speed decides.
_LOAD = 2.0


def arrival_times(count: int, batch_s: float, rng: random.Random) -> list[float]:
    """Seconds after the first arrival, where a static batch of all would take `batch_s`."""
    mean_s = batch_s / count / _LOAD
    return [0.0, *accumulate(rng.expovariate(1.0 / mean_s) for _ in range(count - 1))]


def answer_as_they_come(
    engine: CausalLM, requests: Sequence[MixedRequest], arrivals_s: Sequence[float]
) -> float:
    """Our tokens per second."""
    coming = list(zip(arrivals_s, requests, strict=True))[::-1]
    tokens = submitted = 0
    began_s = time.perf_counter()
    while coming or not engine.is_idle:
        for request in _arrived(coming, began_s, is_idle=engine.is_idle):
            engine.submit(str(submitted), greedy_input(request))
            submitted += 1
        tokens += produced_tokens(engine)
    assert tokens == sum(request.answer_tokens for request in requests)
    return tokens / (time.perf_counter() - began_s)


def generate_as_they_come(
    generate: Callable[[Sequence[MixedRequest]], object],
    requests: Sequence[MixedRequest],
    arrivals_s: Sequence[float],
) -> float:
    """Tokens per second of static batches, one after another."""
    coming = list(zip(arrivals_s, requests, strict=True))[::-1]
    began_s = time.perf_counter()
    while coming:
        generate(_arrived(coming, began_s, is_idle=True))
    tokens = sum(request.answer_tokens for request in requests)
    return tokens / (time.perf_counter() - began_s)


def _arrived(
    coming: list[tuple[float, MixedRequest]], began_s: float, *, is_idle: bool
) -> list[MixedRequest]:
    """Take those out of `coming`, whose next is the last, that have arrived; where `is_idle`, wait
    for one."""
    arrived: list[MixedRequest] = []
    if is_idle and coming:
        arrives_s, request = coming.pop()
        time.sleep(max(0.0, began_s + arrives_s - time.perf_counter()))
        arrived.append(request)
    now_s = time.perf_counter() - began_s
    while coming and coming[-1][0] <= now_s:
        arrived.append(coming.pop()[1])
    return arrived
