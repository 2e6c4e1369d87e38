"""Running the jobs of one request in trio: from a caller's orders to their chunks and outcomes.

Most requests are one job. Those for several answers, or with several prompts, are one job for each;
they are called choices, and each may fail alone. A request that names several models is run with
the first that takes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import trio

from coordinator.buyer.attempt import AttemptTerms
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.job_name import JobName
from coordinator.buyer.result import PurchaseResult
from coordinator.buyer.spec import JobSpec
from coordinator.gateway.bridge import Feed
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError
from coordinator.gateway.market_side.market import GatewayMarket, ModelInfo, RunningJob
from coordinator.gateway.market_side.waiting import wait_model
from coordinator.gateway.orders import Order
from protocol.errors import Code
from protocol.ids import JobId, derive_ulid
from protocol.payload import Chunk

# Why a request that names another model tries that one. Money and deadlines are no other there.
_FALLS_BACK = frozenset(
    {
        Code.UNKNOWN_MODEL,
        Code.NO_NODE_FITS,
        Code.MODEL_UNAVAILABLE,
        Code.BUSY,
        Code.DRAINING,
        Code.NODE_LOST,
        Code.WORKER_CRASHED,
        Code.WORKER_HUNG,
        Code.OUT_OF_MEMORY,
        Code.PROMPT_TOO_LONG,
        Code.INPUT_TOO_LARGE,
    }
)

# Of one request. More would let one request take every seat of a model.
CHOICES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class JobLimits:
    """How long one job may take, and how much of that it may wait for a node of its model. `name`
    is the first choice's, from which those of others follow; `delivered` gains what comes of the
    choices of a whole answer."""

    job_within_s: float
    model_within_s: float
    name: JobName
    delivered: dict[int, list[Chunk]]

    def job_id_of(self, choice: int) -> JobId:
        first = self.name.tell()
        return JobId(derive_ulid(first, f"choice/{choice}")) if choice else first

    def of_try(self, number: int, *, is_last: bool) -> "JobLimits":
        """For the model with that number of those that a request names. Each is another job. Only
        for the last one is waited."""
        name = self.name
        if number:
            name = JobName(JobId(derive_ulid(name.tell(), f"model/{number}")))
        model_within_s = self.model_within_s if is_last else 0.0
        return replace(self, name=name, model_within_s=model_within_s)


@dataclass(frozen=True, slots=True)
class StartedAnswer:
    """A job that has output. `node_s` is how long the node took from the lease until then; `model`
    is what was known of the model, None if nothing; `model_name` is what the request called it.
    `generation_id` is the id of the first choice's job."""

    info: AttemptTerms
    node_s: float
    model: ModelInfo | None
    model_name: str
    generation_id: JobId


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


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """How one choice of a stream ended."""

    opened: StartedAnswer
    outcome: PurchaseResult


# A choice's number, and what came of it.
ChoiceItem = tuple[int, Chunk | ChoiceEnd | JobFailed]


async def run_whole(
    market: GatewayMarket, caller: Caller, orders: Sequence[Order], limits: JobLimits
) -> list[WholeAnswer | JobFailed]:
    """Run jobs to their ends. Raises JobFailed if none has an answer, and ApiError."""
    *tries, last = _tries(orders, limits)
    for try_orders, try_limits in tries:
        try:
            return await _run_whole(market, caller, try_orders, try_limits)
        except (ApiError, JobFailed) as failure:
            if not _falls_back(failure):
                raise
    return await _run_whole(market, caller, *last)


async def _run_whole(
    market: GatewayMarket, caller: Caller, orders: Sequence[Order], limits: JobLimits
) -> list[WholeAnswer | JobFailed]:
    model = await _find_model(market, orders, limits)
    run = _Run(market, caller, limits, model, has_choices=len(orders) > 1)
    if len(orders) == 1:
        return [await run.whole(0, orders[0])]
    found: dict[int, WholeAnswer | JobFailed] = {}
    limiter = trio.CapacityLimiter(CHOICES_AT_ONCE)

    async def run_choice(index: int) -> None:
        async with limiter:
            try:
                found[index] = await run.whole(index, orders[index])
            except JobFailed as failure:
                found[index] = failure

    run.check(orders)
    async with trio.open_nursery() as nursery:
        for index in range(len(orders)):
            nursery.start_soon(run_choice, index)
    answers = [found[index] for index in range(len(orders))]
    _raise_if_none([answer for answer in answers if isinstance(answer, JobFailed)], orders)
    return answers


async def run_streaming(
    feed: Feed[StartedAnswer, ChoiceItem],
    market: GatewayMarket,
    caller: Caller,
    orders: Sequence[Order],
    limits: JobLimits,
) -> None:
    """Run jobs and feed their chunks and ends; the feed's head is the first that has output.

    Raises JobFailed if none has an answer, and ApiError.
    """
    *tries, last = _tries(orders, limits)
    for try_orders, try_limits in tries:
        try:
            return await _run_streaming(feed, market, caller, try_orders, try_limits)
        except (ApiError, JobFailed) as failure:
            if feed.head is not None or not _falls_back(failure):
                raise
    return await _run_streaming(feed, market, caller, *last)


async def _run_streaming(
    feed: Feed[StartedAnswer, ChoiceItem],
    market: GatewayMarket,
    caller: Caller,
    orders: Sequence[Order],
    limits: JobLimits,
) -> None:
    model = await _find_model(market, orders, limits)
    run = _Run(market, caller, limits, model, has_choices=len(orders) > 1)
    if len(orders) == 1:
        await run.into(feed, 0, orders[0])
        return
    failures: dict[int, JobFailed] = {}
    limiter = trio.CapacityLimiter(CHOICES_AT_ONCE)

    async def run_choice(index: int) -> None:
        async with limiter:
            try:
                await run.into(feed, index, orders[index])
            except JobFailed as failure:
                failures[index] = failure

    run.check(orders)
    async with trio.open_nursery() as nursery:
        for index in range(len(orders)):
            nursery.start_soon(run_choice, index)
    _raise_if_none(list(failures.values()), orders)
    for item in failures.items():
        feed.put(item)


def _tries(
    orders: Sequence[Order], limits: JobLimits
) -> Iterator[tuple[Sequence[Order], JobLimits]]:
    """The same orders for one model after the other."""
    routing = orders[0].routing
    last = len(routing.fallbacks)
    for number, routed in enumerate((routing, *routing.fallbacks)):
        for_model = orders if routed is routing else [replace(o, routing=routed) for o in orders]
        yield for_model, limits.of_try(number, is_last=number == last)


def _falls_back(failure: ApiError | JobFailed) -> bool:
    """Whether another model may do what this one could not. An ApiError comes before any job is
    bought."""
    if isinstance(failure, ApiError):
        return True
    is_free = not failure.delivered and not failure.amount_nano
    return is_free and failure.code in _FALLS_BACK


def _raise_if_none(failures: Sequence[JobFailed], orders: Sequence[Order]) -> None:
    """A failure is shown beside the other choices; where all failed it is the request's."""
    if len(failures) == len(orders):
        # One that was paid for must not be sent again.
        raise next((failure for failure in failures if failure.amount_nano), failures[0])


async def _find_model(
    market: GatewayMarket, orders: Sequence[Order], limits: JobLimits
) -> ModelInfo | None:
    return await wait_model(market, orders[0].routing.model, within_s=limits.model_within_s)


@dataclass(frozen=True, slots=True)
class _Run:
    """What the jobs of one request share."""

    market: GatewayMarket
    caller: Caller
    limits: JobLimits
    model: ModelInfo | None
    has_choices: bool

    def check(self, orders: Sequence[Order]) -> None:
        """Raises ApiError before any job is bought, if one of them cannot be."""
        for order in orders:
            order.to_spec(self.caller, self.model, deadline_s=self.limits.job_within_s)

    async def whole(self, index: int, order: Order) -> WholeAnswer:
        spec = replace(self._spec(index, order), is_shown_whole=True)
        started_at = trio.current_time()
        chunks = self.limits.delivered[index] = []
        async with self.market.open_job(self.caller, spec) as job:
            async for chunk in job:
                chunks.append(chunk)  # noqa: PERF401 - what came before a cancel is kept
            opened = self._opened(job, order, started_at)
        return WholeAnswer(opened, chunks, outcome_of(job))

    async def into(self, feed: Feed[StartedAnswer, ChoiceItem], index: int, order: Order) -> None:
        spec = self._spec(index, order)
        started_at = trio.current_time()
        async with self.market.open_job(self.caller, spec) as job:
            opened = self._opened(job, order, started_at)
            if feed.head is None:
                feed.head = opened
            async for chunk in job:
                if not feed.put((index, chunk)):
                    await feed.wait_room()
        feed.put((index, ChoiceEnd(opened, outcome_of(job))))

    def _spec(self, index: int, order: Order) -> JobSpec:
        spec = order.to_spec(self.caller, self.model, deadline_s=self.limits.job_within_s)
        if not self.has_choices:
            return replace(spec, name=self.limits.name)
        return replace(spec, job_id=self.limits.job_id_of(index))

    def _opened(self, job: RunningJob, order: Order, started_at: float) -> StartedAnswer:
        info = job.terms
        assert info is not None, "a job that is open says where it runs"
        node_s = trio.current_time() - started_at - info.lease_ms / 1_000
        return StartedAnswer(
            info,
            node_s,
            self.model,
            model_name=order.routing.model,
            generation_id=self.limits.name.id,
        )


def outcome_of(job: RunningJob) -> PurchaseResult:
    """How a job ended that was read to its end. Raises JobFailed if it has no answer."""
    outcome = job.result
    assert outcome is not None, "a job that was read to its end says how it ended"
    return outcome
