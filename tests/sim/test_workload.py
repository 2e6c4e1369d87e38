from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from protocol.generation import GenerationInput
from protocol.ids import PeerId
from sim.options import draw_options
from sim.sim_worker import CONTEXT_TOKENS, answer_of
from sim.workload import MODELS, PlannedJob, plan_jobs, plan_probes

NODES = tuple(PeerId(f"node-{number}") for number in range(5))


def jobs(seed: int) -> tuple[PlannedJob, ...]:
    return plan_jobs(draw_options(seed), NODES, Random(seed))


@pytest.mark.parametrize("seed", range(10))
def test_the_demand_is_what_the_options_say(seed: int) -> None:
    options = draw_options(seed)
    planned = jobs(seed)
    assert [job.number for job in planned] == list(range(1, options.demand.jobs + 1))
    assert [job.at_s for job in planned] == sorted(job.at_s for job in planned)
    buyers = options.clients + len(options.api_keys)
    assert {job.buyer for job in planned} <= set(range(buyers))
    assert {job.spec.model for job in planned} <= set(MODELS.values())
    assert planned == jobs(seed)


def test_every_good_job_has_room_for_its_answer() -> None:
    for seed in range(10):
        for job in jobs(seed):
            job_input = job.spec.job_input
            assert job.answer.units.fits_in(job.spec.units_max) is not job.is_bad
            if isinstance(job_input, GenerationInput):
                assert job.answer == answer_of(job_input)
                if not job.is_bad:
                    units = job.spec.units_max
                    assert units.input_tokens + units.output_tokens <= CONTEXT_TOKENS


def test_jobs_come_in_bursts() -> None:
    options = draw_options(2)
    times = [job.at_s for job in jobs(2)]
    gaps = Counter(later - earlier < 0.5 for earlier, later in pairwise(times))
    assert gaps[True] > gaps[False] or options.demand.burst <= 2


def test_who_leases_ahead_asks_for_jobs_that_one_class_of_leases_serves() -> None:
    pooled = [seed for seed in range(1, 20) if draw_options(seed).pools.leases]
    assert 5 < len(pooled) < 15
    for seed in pooled:
        options, alike = draw_options(seed), Counter[tuple[object, ...]]()
        for job in jobs(seed):
            spec = job.spec
            if job.buyer in options.pooled_buyers:
                units = spec.units_max
                alike[job.buyer, units.output_tokens, spec.objective, spec.deadline_s] += 1
        assert max(alike.values()) >= options.demand.run_jobs[0]


def test_probes_are_ordinary_jobs_of_the_clients_with_money_and_of_each_key() -> None:
    options = draw_options(3)
    probes = plan_probes(options, Random(3))
    assert [probe.buyer for probe in probes] == [0, 1, 3, 4, 5, 6]
    assert not any(probe.is_bad or probe.cancel_after is not None for probe in probes)
