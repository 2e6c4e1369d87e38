"""What a client needs of a coordinator, wherever that runs."""

from typing import Protocol

from protocol.blame import Observation
from protocol.envelope import Signed
from protocol.grants import Granted, Payer
from protocol.ids import PeerId
from protocol.messages import Acceptance, JobRequest, Lease, Receipt
from protocol.services import NodesAsk, NodesReply, QuoteAsk, QuoteReply, SettleReply


class Leaser(Protocol):
    """A coordinator, in the same process or over the network."""

    @property
    def coordinator(self) -> PeerId: ...

    async def lease(
        self,
        request: Signed[JobRequest],
        *,
        exclude: tuple[PeerId, ...],
        receipts: tuple[Signed[Receipt], ...],
        payer: Payer | None = None,
    ) -> Granted:
        """Hold funds and name a node. `receipts` are signed refusals of earlier attempts, which
        free their holds. `payer` is whose budget to charge, known to a gateway only.

        Raises RemoteProtocolError if nothing fits or funds are missing.
        """
        ...

    async def settle(self, receipt: Signed[Receipt], acceptance: Signed[Acceptance]) -> SettleReply:
        """Returns once the receipt is durable. Raises RemoteProtocolError or NetError."""
        ...

    def observe(self, lease: Signed[Lease], observation: Observation) -> None:
        """Tell how a node did, for its reputation. Moves no money; a remote coordinator, which has
        no reason to believe us, is not told."""
        ...

    async def quote(self, ask: QuoteAsk) -> QuoteReply: ...

    async def nodes(self, ask: NodesAsk) -> NodesReply: ...
