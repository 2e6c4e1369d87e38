"""The baseline of what a market costs: an engine with nothing around it, and prompts to ask."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

from capanode.engines.base import Engine, Produced
from protocol.generation import ChatMessage, GenerationInput

_TOPICS = ("rain", "trains", "bread", "violins", "glaciers", "spices", "maps", "bees", "ink")


def story_prompts() -> Iterator[str]:
    """Prompts of about the same length, none twice: no cache may help either side."""
    for number in itertools.count():
        topic = _TOPICS[number % len(_TOPICS)]
        yield f"Tell story number {number} about {topic}, in a calm voice and many sentences."


@dataclass(frozen=True, slots=True)
class Answered:
    """When each answer's first token came, in seconds, and the speed of all together."""

    first_s: list[float]
    tokens_per_s: float


class EngineAlone:
    """Asks an engine in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids = itertools.count()

    def answer(self, prompts: list[str], tokens: int) -> Answered:
        """All at once, greedily decoded."""
        began_s = time.perf_counter()
        first_s: dict[str, float] = {}
        count = 0
        for prompt in prompts:
            self._engine.submit(str(next(self._ids)), _job_input(prompt, tokens))
        while not self._engine.is_idle:
            for event in self._engine.step():
                if isinstance(event, Produced):
                    count += len(event.token_ids)
                    first_s.setdefault(event.job_id, time.perf_counter() - began_s)
        return Answered(list(first_s.values()), count / (time.perf_counter() - began_s))


def _job_input(prompt: str, tokens: int) -> GenerationInput:
    return GenerationInput(
        max_tokens=tokens, messages=(ChatMessage("user", prompt),), temperature=0.0
    )
