"""What the clients of a world want, and when: planned from the seed before anything runs.

Every job comes with its one right answer, so that whatever arrives can be compared with it.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coordinator.buyer.spec import DEADLINE_S, JobSpec
from coordinator.gateway.config import GatewayConfig
from protocol.generation import GenerationInput
from protocol.ids import PeerId
from protocol.messages import NO_CONSTRAINTS, Constraints, Objective, Task
from protocol.payload import EmbeddingInput
from protocol.pricing import Units
from sim.options import Demand, KeyPlan, WorldOptions
from sim.sim_worker import CONTEXT_TOKENS, PlannedAnswer, SimInput, answer_of

# Models by task; every node offers the first, every other node the second.
MODELS = {Task.CAUSAL_LM: "sim-lm", Task.EMBEDDING: "sim-embedder"}

# The deadlines of programs whose users say nothing: of a client, and of the gateway.
_USUAL_DEADLINES_S = {False: DEADLINE_S, True: GatewayConfig().job_within_s}

_WORDS = ("graph", "tensor", "market", "lease", "token", "river", "seed", "clock", "fault", "peer")
_PROMPT_WORDS = (3, 60)
_TEXTS_MAX = 6


@dataclass(frozen=True, slots=True)
class _Run:
    """What the jobs of a run have in common: one class of leases serves nearly all of them."""

    name: str
    objective: Objective
    words: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class _Ask:
    """When which buyer asks for a job, and as part of which run."""

    at_s: float
    buyer: int
    run: _Run | None = None


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job of buyer number `buyer` (the clients come first, then the API keys), asked for `at_s`
    after the chaos begins. `is_bad` if no node may answer it; `cancel_after` chunks its buyer has
    had enough. At the gateway, its body takes `body_s`. `run` names the run that it is part of, if
    it is of one."""

    number: int
    buyer: int
    at_s: float
    spec: JobSpec
    answer: PlannedAnswer
    is_bad: bool = False
    cancel_after: int | None = None
    body_s: float = 0.0
    run: str = ""

    @property
    def name(self) -> str:
        return f"job-{self.number}"


def plan_jobs(
    options: WorldOptions, nodes: Sequence[PeerId], rng: random.Random
) -> tuple[PlannedJob, ...]:
    """The demand of the chaos phase, in order of time."""
    demand = options.demand
    runs = list(_plan_runs(options, rng)) if options.pooled_buyers else []
    runs = runs[: demand.jobs]
    asked = sorted(
        (*runs, *_plan_bursts(options, demand.jobs - len(runs), rng)), key=lambda ask: ask.at_s
    )
    return tuple(_plan_job(number, ask, options, nodes, rng) for number, ask in enumerate(asked, 1))


def plan_probes(options: WorldOptions, rng: random.Random) -> tuple[PlannedJob, ...]:
    """What has to be answered once nothing fails any more, or refused for the reason that its buyer
    has: a job of each client that has money, and of each API key."""
    job_input = _generation(options.demand, rng)
    keys = range(options.clients, options.clients + len(options.api_keys))
    return tuple(
        PlannedJob(
            number=options.demand.jobs + 1 + buyer,
            buyer=buyer,
            at_s=0.0,
            spec=_spec(
                job_input,
                answer_of(job_input),
                deadline_s=_USUAL_DEADLINES_S[buyer >= options.clients],
            ),
            answer=answer_of(job_input),
        )
        for buyer in (*range(options.clients - 1), *keys)
    )


def longest_s(demand: Demand) -> float:
    """How long a job may take from when it is asked for."""
    return demand.slow_body_s[1] + max(*_USUAL_DEADLINES_S.values(), demand.deadline_s[1])


def _deadline_s(demand: Demand, rng: random.Random, *, is_at_gateway: bool) -> float:
    if rng.random() < demand.usual_deadline_share:
        return _USUAL_DEADLINES_S[is_at_gateway]
    return round(rng.uniform(*demand.deadline_s), 1)


def _plan_runs(options: WorldOptions, rng: random.Random) -> Iterator[_Ask]:
    """Jobs that are alike and come one after another, of buyers that lease ahead: of a client, of
    the gateway's first key or its last, which have no limits and most of them, and of any."""
    demand, pooled = options.demand, options.pooled_buyers
    at_gateway = (rng.choice((options.clients, pooled[-1])),) if options.pools.is_at_gateway else ()
    first = (pooled[0], *at_gateway)
    buyers = (*first, *rng.choices(pooled, k=demand.runs - len(first)))
    for number, buyer in enumerate(buyers, 1):
        at_s, gap_s = rng.uniform(0.0, options.chaos_s), rng.uniform(*demand.run_gap_s)
        run = _Run(
            name=f"run-{number}",
            objective=rng.choice(tuple(Objective)),
            words=rng.randint(*_PROMPT_WORDS),
            max_tokens=rng.randint(*demand.tokens),
        )
        for _ in range(rng.randint(*demand.run_jobs)):
            yield _Ask(at_s, buyer, run)
            at_s += rng.uniform(0.5, 1.5) * gap_s


def _plan_bursts(options: WorldOptions, jobs: int, rng: random.Random) -> Iterator[_Ask]:
    """Jobs come in bursts; some bursts are of one program with a key."""
    demand, keys = options.demand, len(options.api_keys)
    for number in range(jobs):
        if number % demand.burst == 0:
            burst_at_s = rng.uniform(0.0, options.chaos_s)
            is_of_one = keys and rng.random() < demand.gateway_burst_share
            burst_key = rng.randrange(keys) if is_of_one else None
        key = burst_key
        if key is None and keys and rng.random() < demand.gateway_share:
            key = rng.randrange(keys)
        buyer = rng.randrange(options.clients) if key is None else options.clients + key
        yield _Ask(burst_at_s + rng.uniform(0.0, demand.burst_s), buyer)


def _plan_job(
    number: int,
    ask: _Ask,
    options: WorldOptions,
    nodes: Sequence[PeerId],
    rng: random.Random,
) -> PlannedJob:
    if ask.run is not None:
        return _plan_job_of_run(number, ask, ask.run, options, rng)
    demand, at_s, buyer = options.demand, ask.at_s, ask.buyer
    is_embedding = rng.random() < demand.embedding_share
    job_input = _texts(rng) if is_embedding else _generation(demand, rng)
    key = options.api_keys[buyer - options.clients] if buyer >= options.clients else None
    is_bad = rng.random() < demand.bad_input_share
    if is_bad:
        # The gateway claims what an input can come to: there only the model's context is too short.
        job_input = _too_long(rng, 100 if key is None else CONTEXT_TOKENS + 1)
    answer = answer_of(job_input)
    is_impatient = rng.random() < demand.cancel_share
    spec = _spec(
        job_input,
        answer,
        objective=rng.choice(tuple(Objective)),
        constraints=_constraints(nodes, rng),
        deadline_s=_deadline_s(demand, rng, is_at_gateway=key is not None),
        is_understated=is_bad,
    )
    return PlannedJob(
        number=number,
        buyer=buyer,
        at_s=at_s,
        spec=spec,
        answer=answer,
        is_bad=is_bad,
        cancel_after=rng.randrange(4) if is_impatient else None,
        body_s=0.0 if key is None else _body_s(key, at_s, demand, rng),
    )


def _plan_job_of_run(
    number: int, ask: _Ask, run: _Run, options: WorldOptions, rng: random.Random
) -> PlannedJob:
    job_input = GenerationInput(
        max_tokens=run.max_tokens, prompt=_prompt(run.words, rng), seed=rng.getrandbits(31)
    )
    is_impatient = rng.random() < options.demand.cancel_share
    return PlannedJob(
        number=number,
        buyer=ask.buyer,
        at_s=ask.at_s,
        spec=_spec(
            job_input,
            answer_of(job_input),
            objective=run.objective,
            deadline_s=_USUAL_DEADLINES_S[ask.buyer >= options.clients],
        ),
        answer=answer_of(job_input),
        cancel_after=rng.randrange(4) if is_impatient else None,
        run=run.name,
    )


def _body_s(key: KeyPlan, at_s: float, demand: Demand, rng: random.Random) -> float:
    """A body that may be under way when its key is revoked ends right after that."""
    revoked_in_s = math.inf if key.revoked_at_s is None else key.revoked_at_s - at_s
    if 0.0 < revoked_in_s < demand.slow_body_s[1]:
        return revoked_in_s + rng.random()
    return rng.uniform(*demand.slow_body_s) if rng.random() < demand.slow_body_share else 0.0


def _spec(
    job_input: SimInput,
    answer: PlannedAnswer,
    *,
    objective: Objective = Objective.BALANCED,
    constraints: Constraints = NO_CONSTRAINTS,
    deadline_s: float,
    is_understated: bool = False,
) -> JobSpec:
    """`is_understated`: the client claims a short input, which the node will find out."""
    output_max = job_input.max_tokens if isinstance(job_input, GenerationInput) else 0
    input_max = 10 if is_understated else answer.input_tokens
    task = Task.CAUSAL_LM if isinstance(job_input, GenerationInput) else Task.EMBEDDING
    return JobSpec(
        model=MODELS[task],
        task=task,
        job_input=job_input,
        units_max=Units(input_tokens=input_max, output_tokens=output_max),
        units_expected=Units(input_tokens=input_max, output_tokens=output_max // 2),
        objective=objective,
        constraints=constraints,
        deadline_s=deadline_s,
    )


def _generation(demand: Demand, rng: random.Random) -> GenerationInput:
    return GenerationInput(
        max_tokens=rng.randint(*demand.tokens),
        prompt=_prompt(rng.randint(*_PROMPT_WORDS), rng),
        seed=rng.getrandbits(31),
    )


def _too_long(rng: random.Random, words_min: int) -> GenerationInput:
    """Longer than claimed; every other one at least is longer than the model's context too."""
    words = rng.choice((words_min, CONTEXT_TOKENS + 1))
    return GenerationInput(max_tokens=4, prompt=_prompt(words, rng))


def _texts(rng: random.Random) -> EmbeddingInput:
    return EmbeddingInput(tuple(_prompt(8, rng) for _ in range(rng.randint(1, _TEXTS_MAX))))


def _prompt(words: int, rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=words))


def _constraints(nodes: Sequence[PeerId], rng: random.Random) -> Constraints:
    """Most clients take any node; some like one, some avoid one, some cap the cost."""
    kind = rng.randrange(10)
    if kind == 0:
        return Constraints(ignore=(rng.choice(nodes),))
    if kind == 1:
        return Constraints(order=tuple(rng.sample(nodes, 2)))
    if kind == 2:
        return Constraints(max_cost_nano=rng.randint(3_000, 40_000))
    return NO_CONSTRAINTS
