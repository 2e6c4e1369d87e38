"""The market as the gateway needs it, where gateway and coordinator share a process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import trio

from coordinator.app import Coordinator
from coordinator.auth import ApiKeyDesk, Caller
from coordinator.client import JobSpec
from coordinator.gateway.budgets import Budgets, Reservation
from coordinator.gateway.market import Health, ModelInfo
from coordinator.job_stream import JobFailed, JobStream
from coordinator.offers import OfferBook
from coordinator.offers.table import (
    CONTEXT,
    FLAGS,
    IMAGE_NANO,
    INPUT_NANO,
    OUTPUT_NANO,
    REQUEST_NANO,
    ModelTable,
)
from protocol.errors import Code
from protocol.money import format_credits
from protocol.pricing import PriceSheet, cost_nano

# A list of models is read by people and dashboards; the book changes with every job.
_MODELS_TTL_S = 1.0

_PRICES = (INPUT_NANO, OUTPUT_NANO, IMAGE_NANO, REQUEST_NANO)


class LocalMarket:
    """A `coordinator.gateway.market.GatewayMarket`."""

    def __init__(self, coordinator: Coordinator, keys: ApiKeyDesk) -> None:
        self._client = coordinator.client
        self._book = coordinator.market.book
        self._keys = keys
        self._budgets = Budgets(trio.current_time)
        self._models: tuple[ModelInfo, ...] = ()
        self._models_until = 0.0

    async def authenticate(self, secret: str) -> Caller | None:
        return await self._keys.authenticate(secret)

    def open_job(self, caller: Caller, spec: JobSpec) -> AbstractAsyncContextManager[JobStream]:
        """Raises JobFailed; BUDGET_EXCEEDED if the caller's key has one and it does not suffice."""
        if caller.remaining_nano is None:
            return self._client.open_job(spec, caller.signing_key)
        return self._open_within_budget(caller, caller.remaining_nano, spec)

    def model(self, name: str) -> ModelInfo | None:
        table = self._book.table(name)
        return _info_of(self._book, table, name) if table is not None and len(table) else None

    def models(self) -> Sequence[ModelInfo]:
        """In order of names, at most a second old."""
        now = trio.current_time()
        if now >= self._models_until:
            found = (self.model(name) for name in sorted(self._book.models()))
            self._models = tuple(model for model in found if model is not None)
            self._models_until = now + _MODELS_TTL_S
        return self._models

    def health(self) -> Health:
        nodes = len(self._book)
        return Health(nodes, "" if nodes else "no node offers anything")

    @asynccontextmanager
    async def _open_within_budget(
        self, caller: Caller, remaining_nano: int, spec: JobSpec
    ) -> AsyncIterator[JobStream]:
        """A lease may cost what is reserved and no more, so many at once cannot overspend."""
        reservation = self._reserve(caller, remaining_nano, spec)
        constraints = replace(spec.constraints, max_cost_nano=reservation.amount_nano)
        try:
            async with self._client.open_job(
                replace(spec, constraints=constraints), caller.signing_key
            ) as job:
                assert job.info is not None, "a job that is open says what it may cost"
                reservation.shrink(job.info.ceiling_nano)
                yield job
                # A job that is left early is charged for what it delivered: at most its ceiling.
                if job.outcome is not None:
                    reservation.shrink(job.outcome.amount_nano)
        except JobFailed as failure:
            if not failure.delivered:
                reservation.shrink(0)
            raise
        finally:
            self._budgets.end(caller.key_id, reservation)

    def _reserve(self, caller: Caller, remaining_nano: int, spec: JobSpec) -> Reservation:
        """The most that this job may cost at today's prices, as far as the budget goes."""
        available_nano = self._budgets.available_nano(caller.key_id, remaining_nano)
        model = self.model(spec.model)
        least_nano = cost_nano(model.price_from, spec.units_max) if model is not None else 0
        if available_nano == 0 or least_nano > available_nano:
            raise JobFailed(
                f"the budget of this API key has {format_credits(available_nano)} credits left; "
                f"this request may cost {format_credits(least_nano)} or more",
                code=Code.BUDGET_EXCEEDED,
            )
        limits_nano = [available_nano]
        if model is not None:
            limits_nano.append(cost_nano(model.price_to, spec.units_max))
        if spec.constraints.max_cost_nano is not None:
            limits_nano.append(spec.constraints.max_cost_nano)
        return self._budgets.reserve(caller.key_id, min(limits_nano))


def _info_of(book: OfferBook, table: ModelTable, name: str) -> ModelInfo | None:
    """One node's offer stands for what they share; prices and contexts are of all."""
    entry = book.get(table.nodes[0])
    offers = [state.offer for state in entry.models.values()] if entry is not None else []
    named = [offer for offer in offers if name in (offer.manifest_digest, offer.name)]
    if entry is None or not named:
        return None
    (offer,) = named
    rows = table.rows()
    columns = [rows.value(column) for column in _PRICES]
    return ModelInfo(
        name=offer.name,
        digest=offer.manifest_digest,
        task=offer.task,
        quantization=offer.quantization,
        nodes=int((rows.code(FLAGS) == 0).sum()),
        context_tokens=int(rows.value(CONTEXT).max()),
        price_from=PriceSheet(*(int(column.min()) for column in columns)),
        price_to=PriceSheet(*(int(column.max()) for column in columns)),
        first_seen_s=entry.offer.incarnation_ms // 1_000,
    )
