"""What drafts by prompt lookup gain for one stream: the same answers with them and without.

Copying is what they are for: a text quoted, a program with one name changed, facts taken from a
page. Plain answers repeat little, and show what the look costs. The answers are compared, too: they
must be the same. Times alternate, so that a noisy moment favours neither side; a gain is the median
over prompts and rounds. Where other programs share the machine, `draft_cpu_gain_X` is disturbed
less: it compares the processors' time. Tokens per step do not depend on the machine.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capanode.engines.base import Produced
from capanode.engines.causal_lm import CausalLM
from protocol.generation import ChatMessage, GenerationInput

ROUNDS = 2
COPIED_TOKENS = 96
PLAIN_TOKENS = 64

_PROGRAM = """def read_rows(path, limit):
    rows = []
    with open(path) as source:
        for line in source:
            if len(rows) >= limit:
                break
            fields = line.rstrip().split(",")
            rows.append([field.strip() for field in fields])
    return rows
"""
_STORY = (
    "The heron stood in the shallow water without moving for most of an hour. Two boats passed it, "
    "and a child threw a stone, but it did not lift its head. When the tide turned it walked "
    "slowly to the other bank, looked once into the reeds, and flew away over the mill."
)
_PAGE = (
    "Opening hours of the harbour office: Monday to Friday, 8:30 to 17:00. Berths are booked by "
    "telephone at 0470 555 132 or at the counter. A berth of up to 9 metres costs 24 euros a "
    "night, a longer one 38 euros. Water and electricity are included. Dogs are kept on a lead."
)
COPYING = (
    f"Write this program again with `rows` renamed to `records`:\n\n{_PROGRAM}",
    f"Here is a text.\n\n{_STORY}\n\nRepeat the text word for word, then say who threw a stone.",
    f"{_PAGE}\n\nQuote what the page says about prices, word for word.",
)
PLAIN = (
    "Write a short story about an old clock.",
    "What is there to know about bread?",
    "Explain to a child how a bridge stands.",
)


@dataclass(frozen=True, slots=True)
class _Answer:
    tokens: tuple[int, ...]
    steps: int
    took_s: float
    cpu_s: float


def measure(model_dir: Path, *, threads: int) -> dict[str, float]:
    """`draft_gain_X` is the speed with drafts by that without; `draft_tokens_per_step_X` how many
    tokens a step gave with them."""
    engines = [CausalLM.load(model_dir, slots=1, threads=threads, drafts=d) for d in (False, True)]
    copying = [_asked(text, COPIED_TOKENS) for text in COPYING]
    plain = [
        _asked(text, PLAIN_TOKENS, temperature=0.8, ignore_eos=True, seed=number)
        for number, text in enumerate(PLAIN)
    ]
    for engine in engines:  # Once unmeasured: memory is touched.
        for job_input in (copying[0], plain[0]):
            _answer(engine, job_input)
    return _gain("copying", engines, copying) | _gain("plain", engines, plain)


def _gain(
    name: str, engines: Sequence[CausalLM], inputs: Sequence[GenerationInput]
) -> dict[str, float]:
    gains: list[float] = []
    cpu_gains: list[float] = []
    tokens = steps = 0
    for number in range(ROUNDS):
        for job_input in inputs:
            order = (0, 1) if number % 2 else (1, 0)
            found = {side: _answer(engines[side], job_input) for side in order}
            without, drafted = found[0], found[1]
            assert drafted.tokens == without.tokens, "drafts have changed an answer"
            gains.append(without.took_s / drafted.took_s)
            cpu_gains.append(without.cpu_s / drafted.cpu_s)
            tokens += len(drafted.tokens)
            steps += drafted.steps
    return {
        f"draft_gain_{name}": statistics.median(gains),
        f"draft_cpu_gain_{name}": statistics.median(cpu_gains),
        f"draft_tokens_per_step_{name}": tokens / steps,
    }


def _asked(text: str, max_tokens: int, **options: float) -> GenerationInput:
    settled = {"temperature": 0.0, **options}
    return GenerationInput(
        max_tokens=max_tokens,
        messages=(ChatMessage("user", text),),
        temperature=settled["temperature"],
        ignore_eos=bool(settled.get("ignore_eos", False)),
        seed=int(settled.get("seed", 0)),
    )


def _answer(engine: CausalLM, job_input: GenerationInput) -> _Answer:
    """The time and the steps from the first token on: prompts are read alike."""
    tokens: list[int] = []
    steps, began_s, began_cpu_s = 0, 0.0, 0.0
    engine.submit("job", job_input)
    while not engine.is_idle:
        events = engine.step()
        found = [token for e in events if isinstance(e, Produced) for token in e.token_ids]
        if found and not tokens:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
        else:
            steps += bool(tokens)
        tokens += found
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return _Answer(tuple(tokens), steps, took_s, cpu_s)
