"""What the gateway needs of the market, which is a coordinator in this process, or one
elsewhere. Everything here runs on the trio side.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from coordinator.buyer.ahead.pool import PoolCounts
from coordinator.buyer.attempt import AttemptTerms
from coordinator.buyer.result import PurchaseResult
from coordinator.buyer.spec import JobSpec
from coordinator.gateway.caller import Caller
from coordinator.gateway.market_side.answers import AnswerShelf
from coordinator.gateway.market_side.records import Records
from protocol.ids import Digest
from protocol.messages import Task
from protocol.net.transport import TransportStatistics
from protocol.payload import Chunk
from protocol.pricing import PriceSheet
from protocol.tensors import ModelSignature


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model name and who offers it now. Prices are the lowest and highest of each position,
    `features` and `quantizations` those that any of its nodes has."""

    name: str
    digest: Digest
    task: Task
    quantization: str
    nodes: int
    context_tokens: int
    price_from: PriceSheet
    price_to: PriceSheet
    first_seen_s: int
    features: frozenset[str] = frozenset()
    chat_format: str = ""
    quantizations: tuple[str, ...] = ()
    # Of an embedding; 0 if no offer says it.
    dimensions: int = 0
    # What a tensor model takes and answers.
    signature: ModelSignature | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """`reason` says what is missing; empty if the market can take jobs."""

    nodes: int
    reason: str = ""


class RunningJob(Protocol):
    """A job whose first output has arrived; iterate for the chunks. `buyer.purchase`."""

    @property
    def terms(self) -> AttemptTerms | None: ...

    @property
    def result(self) -> PurchaseResult | None:
        """None before the iteration has ended."""
        ...

    def __aiter__(self) -> AsyncIterator[Chunk]: ...


class GatewayMarket(Protocol):
    """Tests bring a fake one."""

    @property
    def shelf(self) -> AnswerShelf:
        """Where answers are kept that their clients may fetch again."""
        ...

    @property
    def records(self) -> Records: ...

    async def authenticate(self, secret: str) -> Caller | None:
        """Whose API key this is; None if no account has it, or it was revoked."""
        ...

    def open_job(self, caller: Caller, spec: JobSpec) -> AbstractAsyncContextManager[RunningJob]:
        """Buy in the caller's name; see `MarketClient.buy`. Raises JobFailed."""
        ...

    def model(self, name: str) -> ModelInfo | None:
        """What is offered under a name or manifest digest."""
        ...

    def is_expected(self, name: str) -> bool:
        """Whether a name that is not offered now was offered lately, or may be soon."""
        ...

    def models(self) -> Sequence[ModelInfo]:
        """All names that are offered."""
        ...

    def health(self) -> Health: ...

    def leases_ahead(self) -> PoolCounts:
        """What became of leases that were taken before their jobs."""
        ...

    def network(self) -> TransportStatistics:
        """What the market's own network holds, and has refused."""
        ...
