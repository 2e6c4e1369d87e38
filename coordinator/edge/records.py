"""What the users of a gateway beside them may see: the account's jobs in the books of the
coordinators, and their keys' own budgets. Each coordinator keeps books of its own."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from coordinator.buyer.remote import RemoteLeaser
from coordinator.edge.keys import GatewayKeys
from protocol.errors import Code, RemoteProtocolError
from protocol.grants import KeyUse
from protocol.ids import PeerId
from protocol.net.errors import NetError
from protocol.programs.runners import Runner
from protocol.services import (
    BalanceAsk,
    BalanceReply,
    EvidenceAsk,
    EvidenceReply,
    JobAsk,
    JobReply,
    JobsAsk,
    JobsReply,
    UsageAsk,
    UsageReply,
)

R = TypeVar("R")

_UNKNOWN = frozenset({Code.NOT_FOUND, Code.UNKNOWN_ACCOUNT})


class EdgeRecords:
    """A `coordinator.gateway.market_side.records.Records`. Lists are those of the first coordinator
    that answers; a single job is looked for at all."""

    def __init__(
        self, coordinators: Sequence[RemoteLeaser], keys: GatewayKeys, runner: Runner
    ) -> None:
        self._coordinators = coordinators
        self._keys = keys
        self._runner = runner

    async def balance(self, client: PeerId, ask: BalanceAsk) -> BalanceReply:
        return await self._first(lambda remote: remote.balance())

    async def jobs(self, client: PeerId, ask: JobsAsk) -> JobsReply:
        return await self._first(lambda remote: remote.jobs(ask))

    async def job(self, client: PeerId, ask: JobAsk) -> JobReply:
        return await self._first(lambda remote: remote.job(ask))

    async def evidence(self, client: PeerId, ask: EvidenceAsk) -> EvidenceReply:
        return await self._first(lambda remote: remote.evidence(ask))

    async def usage(self, client: PeerId, ask: UsageAsk) -> UsageReply:
        return await self._first(lambda remote: remote.usage(ask))

    async def key_use(self, key_id: str) -> KeyUse:
        found = await self._runner.run_read(self._keys.all_keys)
        for key in found:
            if key.id == key_id:
                return KeyUse(
                    key.id,
                    key.name,
                    key.created_at_ms,
                    budget_nano=key.budget_nano,
                    spent_nano=key.spent_nano,
                    held_nano=0,
                    requests_per_minute=key.requests_per_minute,
                )
        raise RemoteProtocolError("this gateway asks for no API key", code=Code.NOT_FOUND)

    async def _first(self, ask: Callable[[RemoteLeaser], Awaitable[R]]) -> R:
        refused: RemoteProtocolError | None = None
        for remote in self._coordinators:
            try:
                return await ask(remote)
            except NetError:
                continue
            except RemoteProtocolError as error:
                if error.code not in _UNKNOWN:
                    raise
                refused = error
        raise refused or RemoteProtocolError(
            "no coordinator of this gateway answers", code=Code.COORDINATOR_LOST
        )
