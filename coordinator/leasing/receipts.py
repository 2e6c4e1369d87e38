"""What leasing needs of settling: a place to hand in receipts, and clients' words without one."""

from typing import Protocol

from protocol.countersigning import Delivery
from protocol.envelope import Signed
from protocol.messages import Acceptance, Receipt
from protocol.services import SettleReply


class ReceiptTaker(Protocol):
    """Takes receipts from clients and nodes. `settling.receipt_service` has the real one."""

    async def recall(self, raw: bytes) -> SettleReply | None:
        """What was paid on a receipt that was settled lately, if these are its very bytes; one that
        is being settled is waited for."""
        ...

    async def accept(
        self, receipt: Signed[Receipt], acceptance: Signed[Acceptance] | None
    ) -> SettleReply:
        """Make the receipt durable, and pay it if its time has come. Raises RemoteProtocolError."""
        ...

    async def declare(self, delivery: Signed[Delivery]) -> None:
        """Make durable what a client got of a job that ended without a receipt. Raises
        RemoteProtocolError."""
        ...
