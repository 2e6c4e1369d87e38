"""Buying the answers of some lines. The receipts are signed when the block is left: inside it, the
answers are made durable, so that no crash leaves one that is paid and lost."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Protocol

import trio

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.spec import JobSpec
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import error_of
from coordinator.gateway.http.dialect import ChoiceAnswer
from coordinator.gateway.market_side.market import ModelInfo, RunningJob
from coordinator.gateway.market_side.running import StartedAnswer, WholeAnswer, outcome_of
from coordinator.gateway.orders import Order
from protocol.errors import Code
from protocol.ids import JobId
from protocol.limits import JOB_DURATION_MAX_MS

# Of one job, from its lease to its last token: no job may take longer, and an answer is not cut.
JOB_WITHIN_S = JOB_DURATION_MAX_MS / 1_000


class JobMarket(Protocol):
    """What is needed of a market to buy in it: a part of `GatewayMarket`."""

    def model(self, name: str) -> ModelInfo | None: ...

    def is_expected(self, name: str) -> bool: ...

    def open_job(self, caller: Caller, spec: JobSpec) -> AbstractAsyncContextManager[RunningJob]:
        """Raises JobFailed."""
        ...


@asynccontextmanager
async def open_answers(
    market: JobMarket, caller: Caller, orders: Sequence[Order], job_ids: Sequence[JobId]
) -> AsyncIterator[list[ChoiceAnswer]]:
    """One answer for each order; a choice may fail alone, but for the first. Raises JobFailed,
    ApiError."""
    name = orders[0].routing.model
    model = market.model(name)
    if model is None and market.is_expected(name):
        raise JobFailed(f"no node offers {name!r} at the moment", code=Code.NO_NODE_FITS)
    specs = [
        replace(order.to_spec(caller, model, deadline_s=JOB_WITHIN_S), is_batch=True, job_id=job_id)
        for order, job_id in zip(orders, job_ids, strict=True)
    ]
    async with AsyncExitStack() as stack:
        choices: list[ChoiceAnswer] = []
        for order, spec in zip(orders, specs, strict=True):
            started_at = trio.current_time()
            try:
                job = await stack.enter_async_context(market.open_job(caller, spec))
                chunks = [chunk async for chunk in job]
                outcome = outcome_of(job)
            except JobFailed as failure:
                if not choices:
                    raise
                choices.append(error_of(failure.code, str(failure), input_param=order.input_param))
                continue
            assert job.terms is not None, "a job that has ended says where it ran"
            node_s = trio.current_time() - started_at - job.terms.lease_ms / 1_000
            opened = StartedAnswer(
                job.terms, node_s, model, model_name=name, generation_id=job_ids[0]
            )
            choices.append(WholeAnswer(opened, chunks, outcome))
        yield choices
