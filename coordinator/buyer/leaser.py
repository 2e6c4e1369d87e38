"""What a client needs of a coordinator, wherever that runs."""

from typing import Protocol

from protocol.blame import Observation
from protocol.countersigning import Delivery
from protocol.envelope import Signed
from protocol.grants import NO_ATTEMPTS, EarlierAttempts, Granted, Payer
from protocol.ids import PeerId
from protocol.messages import Acceptance, JobRequest, Lease, Receipt
from protocol.services import NodesAsk, NodesReply, QuoteAsk, QuoteReply, SettleReply


class Leaser(Protocol):
    """A coordinator, in the same process or over the network."""

    @property
    def coordinator(self) -> PeerId: ...

    @property
    def is_local(self) -> bool:
        """Whether it is in this process: then a caller of `lease` that is cancelled has no lease.
        One elsewhere may grant it all the same."""
        ...

    async def lease(
        self,
        request: Signed[JobRequest],
        *,
        earlier: EarlierAttempts = NO_ATTEMPTS,
        payer: Payer | None = None,
    ) -> Granted:
        """Hold funds and name a node. `payer` is whose budget to charge, known to a gateway only.

        Raises RemoteProtocolError if nothing fits or funds are missing.
        """
        ...

    async def settle(self, receipt: Signed[Receipt], acceptance: Signed[Acceptance]) -> SettleReply:
        """Returns once the receipt is durable. Raises RemoteProtocolError or NetError."""
        ...

    async def declare(self, delivery: Signed[Delivery]) -> None:
        """Say what came of a job that ended without a receipt; returns once that is durable. Raises
        RemoteProtocolError or NetError."""
        ...

    def observe(self, lease: Signed[Lease], observation: Observation) -> None:
        """Tell how a node did, for its reputation. Moves no money; a remote coordinator learns from
        what is signed."""
        ...

    async def free_nano(self, client: PeerId, payer: Payer | None) -> int:
        """What an account, and the payer's budget, have that no lease holds. Raises
        RemoteProtocolError or NetError."""
        ...

    async def quote(self, ask: QuoteAsk) -> QuoteReply: ...

    async def nodes(self, ask: NodesAsk) -> NodesReply: ...
