"""Running one job in trio: from a caller's order to its chunks and its outcome."""

from dataclasses import dataclass

import trio

from coordinator.buyer.attempt import AttemptTerms
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.result import PurchaseResult
from coordinator.gateway.bridge import Feed
from coordinator.gateway.caller import Caller
from coordinator.gateway.market_side.market import GatewayMarket, RunningJob
from coordinator.gateway.market_side.waiting import wait_model
from coordinator.gateway.orders import Order
from protocol.endings import Finish
from protocol.errors import Code
from protocol.payload import Chunk

# How a job may end that has an answer.
_ANSWERED = (Finish.STOP, Finish.LENGTH, Finish.COMPLETE)


@dataclass(frozen=True, slots=True)
class JobLimits:
    """How long one job may take, and how much of that it may wait for a node of its model."""

    job_within_s: float
    model_within_s: float


@dataclass(frozen=True, slots=True)
class StartedAnswer:
    """A job that has output. `node_s` is how long the node took from the lease until then."""

    info: AttemptTerms
    node_s: float


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """A whole answer."""

    opened: StartedAnswer
    chunks: list[Chunk]
    outcome: PurchaseResult

    @property
    def data(self) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)


async def run_whole(
    market: GatewayMarket, caller: Caller, order: Order, limits: JobLimits
) -> WholeAnswer:
    """Run a job to its end. Raises JobFailed, ApiError."""
    model = await wait_model(market, order.routing.model, within_s=limits.model_within_s)
    spec = order.to_spec(caller, model, deadline_s=limits.job_within_s)
    started_at = trio.current_time()
    async with market.open_job(caller, spec) as job:
        chunks = [chunk async for chunk in job]
        opened = _opened(job, started_at)
    return WholeAnswer(opened, chunks, _outcome(job))


async def run_streaming(
    feed: Feed[StartedAnswer, Chunk],
    market: GatewayMarket,
    caller: Caller,
    order: Order,
    limits: JobLimits,
) -> PurchaseResult:
    """Run a job and feed its chunks. Raises JobFailed, ApiError."""
    model = await wait_model(market, order.routing.model, within_s=limits.model_within_s)
    spec = order.to_spec(caller, model, deadline_s=limits.job_within_s)
    started_at = trio.current_time()
    async with market.open_job(caller, spec) as job:
        feed.head = _opened(job, started_at)
        async for chunk in job:
            if not feed.put(chunk):
                await feed.wait_room()
    return _outcome(job)


def _opened(job: RunningJob, started_at: float) -> StartedAnswer:
    info = job.terms
    assert info is not None, "a job that is open says where it runs"
    return StartedAnswer(info, trio.current_time() - started_at - info.lease_ms / 1_000)


def _outcome(job: RunningJob) -> PurchaseResult:
    outcome = job.result
    assert outcome is not None, "a job that was read to its end says how it ended"
    if outcome.finish not in _ANSWERED:
        raise JobFailed(
            f"the node says that the job ended as {outcome.finish}",
            code=Code.NODE_LOST,
            delivered=outcome.amount_nano > 0,
        )
    return outcome
