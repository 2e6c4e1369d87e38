"""What a receipt is worth. Every rule about who is paid how much is in this file; none does I/O.

- A receipt that charges nothing frees the hold.
- With an acceptance that agrees, the charge is paid.
- Without one the node is paid too, once its client has had its time.
- If client and node disagree, the smaller of their two charges is paid and the receipt is marked:
  what both sides sign for is certain, the rest is a matter for reputation, not for a coin toss.
- A stream that breaks leaves the client nothing to countersign. What our own client (the gateway)
  counted of it then stands for its word, so that a node cannot break off and bill the maximum.
  A client that got nothing, and did not cancel, pays nothing.
"""

from dataclasses import dataclass

from protocol.endings import ReceiptState
from protocol.messages import Acceptance, Lease, Receipt
from protocol.pricing import Units
from protocol.receipts import charge_nano


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a receipt is worth now. `amount_nano` is None while the client still has its say."""

    state: ReceiptState
    amount_nano: int | None


def judge_receipt(
    receipt: Receipt,
    acceptance: Acceptance | None,
    lease: Lease,
    *,
    is_overdue: bool,
    delivered: Units | None = None,
) -> Verdict:
    """The rules above, for evidence that was already checked. `delivered` is what our own client
    counted, if its stream broke before it could countersign."""
    if receipt.amount_nano == 0:
        return Verdict(ReceiptState.SETTLED, 0)
    if acceptance is None and delivered is not None:
        return _smaller(receipt, charge_nano(lease.price, delivered, receipt.finish))
    if acceptance is None:
        if is_overdue:
            return Verdict(ReceiptState.SETTLED, receipt.amount_nano)
        return Verdict(ReceiptState.PENDING, None)
    if acceptance.agrees:
        return Verdict(ReceiptState.SETTLED, receipt.amount_nano)
    return _smaller(receipt, charge_nano(lease.price, acceptance.units, receipt.finish))


def _smaller(receipt: Receipt, counted_nano: int) -> Verdict:
    """Of two charges, with a mark if they differ."""
    if counted_nano == receipt.amount_nano:
        return Verdict(ReceiptState.SETTLED, counted_nano)
    return Verdict(ReceiptState.DISPUTED, min(receipt.amount_nano, counted_nano))
