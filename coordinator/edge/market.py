"""The market as the gateway needs it, where the coordinators are elsewhere."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import structlog
import trio

from coordinator.buyer.ahead.pool import PoolCounts, sum_counts
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.purchase import Purchase
from coordinator.buyer.spec import JobSpec
from coordinator.edge.branch import Branch
from coordinator.edge.directory import list_models
from coordinator.gateway.caller import Caller
from coordinator.gateway.market_side.answers import MemoryShelf
from coordinator.gateway.market_side.market import Health, ModelInfo
from coordinator.gateway.market_side.records import Records
from protocol.errors import Code
from protocol.limits import MIB
from protocol.net.transport import Transport, TransportStatistics

log = structlog.get_logger(__name__)

# A coordinator that restarts is back within seconds: a job waits for it about as long as for a
# node. After that its client is told when to come back.
COORDINATOR_WITHIN_S = 8.0
_AGAIN_AFTER_S = 0.25
# Nodes attach again within seconds of a coordinator's restart; until then it knows no models.
_REMEMBERED_S = 60.0
_RETRY_AFTER_MS = 2_000

# Answers that may be fetched again.
SHELF_BYTES_MAX = 64 * MIB

# Another market may have the node, or the money, that this one has not. Nothing was delivered.
_ELSEWHERE = frozenset(
    {
        Code.COORDINATOR_LOST,
        Code.NO_NODE_FITS,
        Code.UNKNOWN_MODEL,
        Code.UNKNOWN_ACCOUNT,
        Code.OUT_OF_FUNDS,
        Code.RATE_LIMITED,
        Code.STORAGE_FULL,
    }
)


class EdgeMarket:
    """A `coordinator.gateway.market_side.market.GatewayMarket`. `authenticate` knows the keys."""

    def __init__(
        self,
        transport: Transport,
        authenticate: Callable[[str], Awaitable[Caller | None]],
        records: Records,
    ) -> None:
        self.records = records
        # In memory: a gateway beside its users keeps no payload when it stops.
        self.shelf = MemoryShelf(trio.current_time, bytes_max=SHELF_BYTES_MAX)
        self._transport = transport
        self._authenticate = authenticate
        self.branches: list[Branch] = []
        self._models: Mapping[str, ModelInfo] = {}
        self._listed_until: dict[str, float] = {}

    def note_change(self) -> None:
        """A branch has a new list."""
        now = trio.current_time()
        gone = {name: until for name, until in self._listed_until.items() if until > now}
        self._models = list_models(node for branch in self.branches for node in branch.nodes)
        self._listed_until = gone | dict.fromkeys(self._models, now + _REMEMBERED_S)

    async def authenticate(self, secret: str) -> Caller | None:
        return await self._authenticate(secret)

    @asynccontextmanager
    async def open_job(self, caller: Caller, spec: JobSpec) -> AsyncIterator[Purchase]:
        """Buy at the nearest coordinator that answers and can; wait for one a moment if all are
        away. What has begun goes on without them. Raises JobFailed."""
        async with AsyncExitStack() as stack:
            yield await self._open_somewhere(stack, caller, spec)

    async def _open_somewhere(
        self, stack: AsyncExitStack, caller: Caller, spec: JobSpec
    ) -> Purchase:
        started_at = trio.current_time()
        gives_up_at = started_at + min(COORDINATOR_WITHIN_S, spec.deadline_s)
        while True:
            failures = []
            for branch in self._ranked(spec.model):
                left_s = spec.deadline_s - (trio.current_time() - started_at)
                try:
                    return await stack.enter_async_context(
                        branch.client.buy(replace(spec, deadline_s=left_s), caller.signing_key)
                    )
                except JobFailed as failure:
                    if failure.delivered or failure.code not in _ELSEWHERE:
                        raise
                    branch.is_away = branch.is_away or failure.code is Code.COORDINATOR_LOST
                    log.info("branch_failed", coordinator=branch.coordinator, code=failure.code)
                    failures.append(failure)
            told = [failure for failure in failures if not self._may_pass(failure, spec)]
            if told:
                raise told[0]
            if trio.current_time() >= gives_up_at:
                raise _away()
            await trio.sleep(_AGAIN_AFTER_S)

    def _may_pass(self, failure: JobFailed, spec: JobSpec) -> bool:
        """Whether a coordinator that comes back may say something else."""
        is_forgotten = failure.code is Code.UNKNOWN_MODEL and self.is_expected(spec.model)
        return is_forgotten or failure.code is Code.COORDINATOR_LOST

    def _ranked(self, model: str) -> list[Branch]:
        """Those that answer first, then those that list the model, then the nearest."""

        def rank(branch: Branch) -> tuple[bool, bool, float]:
            lists = any(
                model in (offered.name, offered.manifest_digest)
                for node in branch.nodes
                for offered in node.offer.models
            )
            return branch.is_away, not lists, branch.rtt_s

        return sorted(self.branches, key=rank) if len(self.branches) > 1 else self.branches

    def is_expected(self, name: str) -> bool:
        """What no coordinator lists may still come while we have not heard all of them, and shortly
        after one of them has lost its list."""
        is_known = self._listed_until.get(name, 0.0) > trio.current_time()
        return is_known or not all(branch.has_answered for branch in self.branches)

    def model(self, name: str) -> ModelInfo | None:
        return self._models.get(name)

    def models(self) -> Sequence[ModelInfo]:
        """In order of names."""
        return [info for name, info in sorted(self._models.items()) if name == info.name]

    def health(self) -> Health:
        answering = [branch for branch in self.branches if not branch.is_away]
        nodes = {node.node for branch in answering for node in branch.nodes if node.is_attached}
        if not answering:
            return Health(0, "no coordinator answers")
        return Health(len(nodes), "" if nodes else "no node offers anything")

    def leases_ahead(self) -> PoolCounts:
        return sum_counts(branch.client.leases.counts() for branch in self.branches)

    def network(self) -> TransportStatistics:
        return self._transport.statistics()


def _away() -> JobFailed:
    return JobFailed(
        "no coordinator of this gateway answers",
        code=Code.COORDINATOR_LOST,
        retry_after_ms=_RETRY_AFTER_MS,
    )
