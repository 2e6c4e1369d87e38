"""Texts of batches give their seats to live jobs, and go on later: a real node and a real
coordinator, in virtual time."""

import random
from collections.abc import Callable

import trio

from coordinator.buyer.spec import JobSpec
from protocol.generation import GenerationInput
from protocol.messages import Task
from protocol.pricing import Units
from sim.buyer import End, JobReport
from sim.determinism import run_deterministically
from sim.inspector import Inspector
from sim.options import MACHINES, NO_FAULTS, Network, WorldOptions
from sim.parties import Parties, make_parties
from sim.sim_worker import answer_of
from sim.trace import Trace
from sim.workload import MODELS, PlannedJob

LAPTOP = MACHINES[0]
OPTIONS = WorldOptions(
    nodes=1,
    clients=2,
    api_keys=(),
    machines=(LAPTOP,),
    network=Network(latency_s=(0.001, 0.002), jitter_s=0.0, loss=0.0),
    faults=NO_FAULTS,
)
BATCH_TOKENS, LIVE_TOKENS = 200, 20
BATCH_RUNS_MS = 2_000
LOOK_EVERY_S = 0.1
PROMPT = "one two three four"


def planned(number: int, buyer: int, *, is_batch: bool) -> PlannedJob:
    tokens = BATCH_TOKENS if is_batch else LIVE_TOKENS
    job_input = GenerationInput(max_tokens=tokens, prompt=PROMPT, seed=number, ignore_eos=True)
    units = Units(input_tokens=len(PROMPT.split()), output_tokens=tokens)
    spec = JobSpec(
        MODELS[Task.CAUSAL_LM], Task.CAUSAL_LM, job_input, units, units, is_batch=is_batch
    )
    return PlannedJob(number, buyer, 0.0, spec, answer_of(job_input))


async def until(is_true: Callable[[], bool], within_s: float) -> None:
    for _ in range(round(within_s / LOOK_EVERY_S)):
        if is_true():
            return
        await trio.sleep(LOOK_EVERY_S)
    raise AssertionError(f"not within {within_s} s")


async def play(parties: Parties, inspector: Inspector) -> list[JobReport]:
    """Batches on all seats, slots and queue; then a live job for each slot."""
    reports: list[JobReport] = []

    async def buy(job: PlannedJob) -> None:
        report = await parties.buyers[job.buyer].buy(job)
        inspector.note_ended(report)
        reports.append(report)

    async with trio.open_nursery() as nursery:
        for number in range(LAPTOP.slots + LAPTOP.queue_max):
            nursery.start_soon(buy, planned(number, 0, is_batch=True))
        await trio.sleep(BATCH_RUNS_MS / 1_000)
        for number in range(LAPTOP.slots):
            nursery.start_soon(buy, planned(10 + number, 1, is_batch=False))
    return reports


async def run(rng: random.Random) -> list[JobReport]:
    trace = Trace(trio.current_time)
    with trace.logs_captured():
        parties = make_parties(OPTIONS, rng, trace)
        try:
            inspector = Inspector(parties, OPTIONS, trace)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(parties.coordinator.host.run)
                nursery.start_soon(parties.nodes[0].host.run)
                for buyer in parties.buyers:
                    await nursery.start(buyer.run)
                await until(inspector.is_market_open, 30)
                reports = await play(parties, inspector)
                await until(inspector.is_settled, 300)
                inspector.judge(reports)
                nursery.cancel_scope.cancel()
        finally:
            parties.close()
    assert not inspector.violations
    return reports


def test_live_jobs_start_at_once_and_batches_go_on_later() -> None:
    # A batch job may wait longer for its turn than one request does: its runner asks again, a buyer
    # here does not. In this order of tasks all get theirs.
    reports = run_deterministically(run, 1)
    assert len(reports) == 2 * LAPTOP.slots + LAPTOP.queue_max
    for report in reports:
        assert report.end is End.ANSWERED
        # Nothing is lost, and nothing comes twice.
        assert report.token_ids == report.planned.answer.token_ids
        assert report.outcome is not None
        paid = [part for part in report.outcome.parts if part.amount_nano]
        assert sum(part.tokens_used for part in paid) == len(report.token_ids)
        assert all(part.receipt is not None for part in paid)
    rest_ms = 1_000 * BATCH_TOKENS / LAPTOP.decode_tps - BATCH_RUNS_MS
    for report in reports:
        if report.planned.buyer == 1:
            assert report.attempts == 1
            # What a lease and a prefill take, not the rest of a batch's answer.
            assert report.first_output_ms is not None
            assert report.first_output_ms < rest_ms / 4
    yielded = [r for r in reports if r.planned.buyer == 0 and r.attempts > 1]
    assert len(yielded) == LAPTOP.slots
