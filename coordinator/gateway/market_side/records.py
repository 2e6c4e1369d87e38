"""What the gateway's users may see of themselves, from the market's books."""

from typing import Protocol

from protocol.grants import KeyUse
from protocol.ids import PeerId
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


class Records(Protocol):
    """Each question is about `client` alone. Methods raise RemoteProtocolError: NOT_FOUND,
    UNKNOWN_ACCOUNT; and CoordinatorError or NetError if the books cannot be read now."""

    async def balance(self, client: PeerId, ask: BalanceAsk) -> BalanceReply: ...

    async def jobs(self, client: PeerId, ask: JobsAsk) -> JobsReply: ...

    async def job(self, client: PeerId, ask: JobAsk) -> JobReply: ...

    async def evidence(self, client: PeerId, ask: EvidenceAsk) -> EvidenceReply: ...

    async def usage(self, client: PeerId, ask: UsageAsk) -> UsageReply: ...

    async def key_use(self, key_id: str) -> KeyUse: ...
