"""The market as the gateway needs it, where gateway and coordinator share a process."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import trio

from coordinator.app import Coordinator
from coordinator.auth import ApiKeyDesk
from coordinator.buyer.purchase import Purchase
from coordinator.buyer.spec import JobSpec
from coordinator.gateway.caller import Caller
from coordinator.gateway.market_side.market import Health, ModelInfo
from coordinator.market.offers import OfferBook
from coordinator.market.offers.table import (
    CONTEXT,
    FLAGS,
    IMAGE_NANO,
    INPUT_NANO,
    OUTPUT_NANO,
    REQUEST_NANO,
    ModelTable,
)
from protocol.pricing import PriceSheet

# A list of models is read by people and dashboards; the book changes with every job.
_MODELS_TTL_S = 1.0

_PRICES = (INPUT_NANO, OUTPUT_NANO, IMAGE_NANO, REQUEST_NANO)


class LocalMarket:
    """A `coordinator.gateway.market.GatewayMarket`."""

    def __init__(self, coordinator: Coordinator, keys: ApiKeyDesk) -> None:
        self._client = coordinator.client
        self._book = coordinator.market.book
        self._keys = keys
        self._models: tuple[ModelInfo, ...] = ()
        self._models_until = 0.0

    async def authenticate(self, secret: str) -> Caller | None:
        return await self._keys.authenticate(secret)

    def open_job(self, caller: Caller, spec: JobSpec) -> AbstractAsyncContextManager[Purchase]:
        """Raises JobFailed."""
        return self._client.buy(spec, caller.signing_key)

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
