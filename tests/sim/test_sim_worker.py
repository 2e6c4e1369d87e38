from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from capanode.engines.base import Completed, EngineEvent, Failed, Produced, Started
from capanode.worker.jobs import JobWorker, WorkerState, open_job
from protocol.codec import decode, encode
from protocol.errors import Code, RemoteProtocolError
from protocol.generation import GenerationInput
from protocol.messages import Task
from protocol.payload import EmbeddingInput, EmbeddingOutput
from protocol.pricing import PriceSheet, Units
from sim.options import SimMachine
from sim.sim_worker import CONTEXT_TOKENS, Ailments, SimWorker, answer_of, text_of
from tests.protocol.net.virtual import virtual_time

# A tenth of a second per token alone, and a tenth of that more for every other job in the batch.
MACHINE = SimMachine("test", 100, 10, 0.1, 4, 2, PriceSheet())
FIVE_TOKENS = GenerationInput(max_tokens=5, prompt="one two three", ignore_eos=True)


@asynccontextmanager
async def running(
    ailments: Ailments | None = None, task: Task = Task.CAUSAL_LM
) -> AsyncIterator[tuple[SimWorker, list[WorkerState]]]:
    states: list[WorkerState] = []
    worker = SimWorker(task, MACHINE, ailments or Ailments(4.0), on_state=states.append)
    async with trio.open_nursery() as nursery:
        info = await nursery.start(worker.run)
        assert info is worker.info
        yield worker, states
        nursery.cancel_scope.cancel()


async def run(worker: JobWorker, job_id: str, payload: bytes) -> list[EngineEvent]:
    async with open_job(worker, job_id, payload) as events:
        return [event async for event in events]


@virtual_time
async def test_it_delivers_the_one_right_answer_token_by_token() -> None:
    async with running() as (worker, _):
        events = await run(worker, "a", encode(FIVE_TOKENS))
    answer = answer_of(FIVE_TOKENS)
    assert events[0] == Started("a", Units(input_tokens=3))
    assert events[-1] == Completed("a", "length", Units(3, 5))
    produced = [event for event in events if isinstance(event, Produced)]
    assert tuple(event.token_ids[0] for event in produced) == answer.token_ids
    assert "".join(event.text for event in produced) == answer.text


@virtual_time
async def test_a_job_takes_the_machines_time() -> None:
    async with running() as (worker, _):
        started_at = trio.current_time()
        await run(worker, "a", encode(FIVE_TOKENS))
        assert trio.current_time() - started_at == pytest.approx(3 / 100 + 5 / 10)


@virtual_time
async def test_a_batch_is_slower_than_one_job_and_faster_than_one_after_the_other() -> None:
    async with running() as (worker, _):
        started_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for name in "abcd":
                nursery.start_soon(run, worker, name, encode(FIVE_TOKENS))
        assert trio.current_time() - started_at == pytest.approx(4 * 3 / 100 + 5 * 1.3 / 10)
        assert worker.most_live == 4
        assert worker.live_jobs == 0


@virtual_time
async def test_a_slow_machine_takes_longer() -> None:
    async with running(Ailments(4.0, slowdowns=1)) as (worker, _):
        started_at = trio.current_time()
        await run(worker, "a", encode(FIVE_TOKENS))
        assert trio.current_time() - started_at == pytest.approx(4 * (3 / 100 + 5 / 10))


@virtual_time
async def test_a_refusing_machine_refuses_until_it_is_well() -> None:
    ailments = Ailments(4.0, refusals=1)
    async with running(ailments) as (worker, _):
        with pytest.raises(RemoteProtocolError) as caught:
            await run(worker, "a", encode(FIVE_TOKENS))
        assert caught.value.code is Code.BUSY
        ailments.refusals -= 1
        assert isinstance((await run(worker, "a", encode(FIVE_TOKENS)))[-1], Completed)


@virtual_time
async def test_a_crash_fails_its_jobs_and_passes() -> None:
    async with running() as (worker, states):
        async with open_job(worker, "a", encode(FIVE_TOKENS)) as events:
            assert isinstance(await anext(events), Started)
            await anext(events)
            assert worker.crash(restart_s=2.0) == 1
            left = [event async for event in events]
        assert left == [
            Failed("a", Code.WORKER_CRASHED, "the simulated process ended", Units(0, 1))
        ]
        with pytest.raises(RemoteProtocolError) as caught:
            await run(worker, "b", encode(FIVE_TOKENS))
        assert caught.value.code is Code.MODEL_UNAVAILABLE
        await trio.sleep(2.1)
        assert isinstance((await run(worker, "b", encode(FIVE_TOKENS)))[-1], Completed)
        assert states == [WorkerState.READY, WorkerState.RESTARTING, WorkerState.READY]


@virtual_time
async def test_a_cancelled_job_frees_its_slot_and_says_nothing_more() -> None:
    heard: list[EngineEvent] = []
    async with running() as (worker, _):
        worker.submit("a", encode(FIVE_TOKENS), heard.append)
        await trio.sleep(0.25)
        worker.cancel("a")
        assert worker.live_jobs == 0
        before = len(heard)
        await trio.sleep(5)
        assert len(heard) == before == 3
        worker.cancel("a")


@virtual_time
async def test_a_prompt_longer_than_the_context_fails() -> None:
    job_input = GenerationInput(max_tokens=1, prompt="word " * (CONTEXT_TOKENS + 1))
    async with running() as (worker, _):
        (failed,) = await run(worker, "a", encode(job_input))
    assert isinstance(failed, Failed)
    assert failed.code is Code.PROMPT_TOO_LONG


@virtual_time
async def test_embeddings_come_in_one_piece() -> None:
    job_input = EmbeddingInput(("one two", "three"))
    async with running(task=Task.EMBEDDING) as (worker, _):
        started, produced, finished = await run(worker, "a", encode(job_input))
    assert started == Started("a", Units(input_tokens=3))
    assert isinstance(produced, Produced)
    assert len(decode(EmbeddingOutput, produced.data).vectors) == 2
    assert finished == Completed("a", "complete", Units(input_tokens=3))


def test_an_answer_depends_on_prompt_and_seed_and_may_end_early() -> None:
    answers = [
        answer_of(GenerationInput(max_tokens=100, prompt=prompt, seed=seed))
        for prompt in ("a", "b")
        for seed in (1, 2)
    ]
    assert len({answer.token_ids for answer in answers}) == 4
    assert answers[0] == answer_of(GenerationInput(max_tokens=100, prompt="a", seed=1))
    reasons = {answer_of(GenerationInput(max_tokens=80, prompt=str(n))).reason for n in range(20)}
    assert reasons == {"stop", "length"}
    assert answers[0].text == "".join(map(text_of, answers[0].token_ids))
