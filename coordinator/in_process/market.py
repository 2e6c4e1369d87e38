"""The market as the gateway needs it, where gateway and coordinator share a process."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager

import trio

from coordinator.app import Coordinator
from coordinator.buyer.ahead.pool import PoolCounts
from coordinator.buyer.purchase import Purchase
from coordinator.buyer.spec import JobSpec
from coordinator.db.engine import Connection
from coordinator.db.jobs import list_jobs
from coordinator.gateway.caller import Caller
from coordinator.gateway.market_side.market import Health, ModelInfo
from coordinator.in_process.api_keys import ApiKeyService
from coordinator.market.offers import OfferBook
from coordinator.market.offers.table import (
    CONTEXT,
    FLAGS,
    PRICES,
    ModelTable,
)
from protocol.envelope import open_envelope
from protocol.features import NODE_FEATURES
from protocol.ids import PeerId
from protocol.messages import JobRequest
from protocol.net.transport import TransportStatistics
from protocol.offers import ModelOffer
from protocol.pricing import sheet_of

# A list of models is read by people and dashboards; the book changes with every job.
_MODELS_TTL_S = 1.0

# A list of features does not get longer by more nodes of a model.
_NODES_LOOKED_AT = 1_000

# Nodes whose coordinator comes back attach again within this time.
STARTING_S = 10.0

_KNOWN_MAX = 10_000
# Of so many jobs, at most so old, the models are remembered over a restart.
_JOBS_LOOKED_AT = 500
_KNOWN_FOR_MS = 24 * 3_600 * 1_000


class LocalMarket:
    """A `coordinator.gateway.market_side.market.GatewayMarket`.

    `known` are the names of `list_known_models`. For `STARTING_S` any name may be one that nodes
    offer as soon as they have attached.
    """

    def __init__(
        self, coordinator: Coordinator, keys: ApiKeyService, *, known: frozenset[str] = frozenset()
    ) -> None:
        self.shelf = coordinator.shelf
        self.records = coordinator.records
        self._known = dict.fromkeys(known)
        self._started_at = trio.current_time()
        self._client = coordinator.client
        self._book = coordinator.market.book
        self._transport = coordinator.transport
        self._keys = keys
        self._models: tuple[ModelInfo, ...] = ()
        self._models_until = 0.0
        # Only of names that the book has, or had when last asked for, and no more than _KNOWN_MAX.
        self._infos: dict[str, tuple[float, ModelInfo]] = {}

    async def authenticate(self, secret: str) -> Caller | None:
        return await self._keys.authenticate(secret)

    @asynccontextmanager
    async def open_job(self, caller: Caller, spec: JobSpec) -> AsyncIterator[Purchase]:
        """Raises JobFailed."""
        async with self._client.buy(spec, caller.signing_key) as purchase:
            # Only names that a job was leased for: to offer other names costs strangers nothing.
            self._known.pop(spec.model, None)
            self._known[spec.model] = None
            if len(self._known) > _KNOWN_MAX:
                del self._known[next(iter(self._known))]
            yield purchase

    def is_expected(self, name: str) -> bool:
        is_starting = trio.current_time() < self._started_at + STARTING_S
        return is_starting or name in self._known

    def model(self, name: str) -> ModelInfo | None:
        """At most a second old, but for whether there is any node: every request asks for one."""
        table = self._book.table(name)
        if table is None or not len(table):
            self._infos.pop(name, None)
            return None
        now = trio.current_time()
        known = self._infos.get(name)
        if known is not None and now < known[0]:
            return known[1]
        info = _info_of(self._book, table, name)
        if info is not None:
            if len(self._infos) >= _KNOWN_MAX:
                self._infos.clear()
            self._infos[name] = (now + _MODELS_TTL_S, info)
        return info

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

    def leases_ahead(self) -> PoolCounts:
        return self._client.leases.counts()

    def network(self) -> TransportStatistics:
        return self._transport.statistics()


def list_known_models(conn: Connection, *, now_ms: int) -> frozenset[str]:
    """The names and digests that jobs were leased for lately, from the books: each was paid for, so
    that strangers cannot make us remember names."""
    names: set[str] = set()
    for job in list_jobs(conn, limit=_JOBS_LOOKED_AT):
        if job.created_at_ms > now_ms - _KNOWN_FOR_MS:
            names |= {open_envelope(job.request, JobRequest).message.model, job.model_digest}
    return frozenset(names)


def _info_of(book: OfferBook, table: ModelTable, name: str) -> ModelInfo | None:
    """One node's offer stands for what they share; prices and contexts are of all, and features
    and quantizations of the first thousand."""
    entry = book.get(table.nodes[0])
    offers = list(_offers_of(book, table.nodes[:_NODES_LOOKED_AT], name))
    if entry is None or not offers:
        return None
    offer = offers[0]
    rows = table.rows()
    columns = [rows.value(column) for column, _ in PRICES]
    return ModelInfo(
        name=offer.name,
        digest=offer.manifest_digest,
        task=offer.task,
        quantization=offer.quantization,
        nodes=int((rows.code(FLAGS) == 0).sum()),
        context_tokens=int(rows.value(CONTEXT).max()),
        price_from=sheet_of(int(column.min()) for column in columns),
        price_to=sheet_of(int(column.max()) for column in columns),
        first_seen_s=entry.offer.incarnation_ms // 1_000,
        features=frozenset(word for item in offers for word in item.features) - NODE_FEATURES,
        chat_format=offer.chat_format,
        dimensions=offer.dimensions,
        quantizations=tuple(sorted({item.quantization for item in offers})),
        signature=offer.signature,
    )


def _offers_of(book: OfferBook, nodes: Iterable[PeerId], name: str) -> Iterator[ModelOffer]:
    for node in nodes:
        entry = book.get(node)
        offers = [state.offer for state in entry.models.values()] if entry is not None else []
        yield from (offer for offer in offers if name in (offer.manifest_digest, offer.name))
