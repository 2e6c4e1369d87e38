"""What a receipt is worth. Every rule about who is paid how much is in this file; none does I/O.

- A receipt that charges nothing frees the hold.
- With an acceptance that agrees, the charge is paid.
- If client and node disagree, the smaller of their two charges is paid and the receipt is marked.
  The client's later word is never taken for less than what it signed while the text streamed.
- A client that got no receipt says what it got (`Delivery`); that word counts like an acceptance.
- A receipt without any word of the client is a lone receipt. It is not paid before its job can be
  over (`OpenLease.lone_receipt_due_ms`), and then only for what the client signed by its links, and
  one window more if the lease says so. Without a job opening it is worth nothing: the client may
  never have come. Before the first link one window is paid at most, input and output together.
- An answer in one piece (embedding, image, tensors) has no windows: the exposure is that one job.

The rules are the same for every buyer, the coordinator's own gateway included.
"""

from dataclasses import dataclass, replace

from protocol.countersigning import UNOPENED, Proof, terms_of
from protocol.endings import ReceiptState
from protocol.messages import Acceptance, Lease, Receipt
from protocol.pricing import Units
from protocol.receipts import charge_nano


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a receipt is worth now. `amount_nano` is None while the client still has its say."""

    state: ReceiptState
    amount_nano: int | None


@dataclass(frozen=True, slots=True)
class ClientWord:
    """What is known of the client's side of a job that has a receipt.

    `acceptance` is its countersignature; `delivered` what it said that it got when it saw no
    receipt; `proof` what it signed while the text streamed.
    """

    acceptance: Acceptance | None = None
    delivered: Units | None = None
    proof: Proof = UNOPENED


def judge(receipt: Receipt, lease: Lease, word: ClientWord, *, is_due: bool) -> Verdict:
    """The rules above, for evidence that was already checked."""
    if receipt.amount_nano == 0:
        return Verdict(ReceiptState.SETTLED, 0)
    if word.acceptance is not None and word.acceptance.agrees:
        return Verdict(ReceiptState.SETTLED, receipt.amount_nano)
    counted = word.acceptance.units if word.acceptance is not None else word.delivered
    if counted is not None:
        counted = _at_least(counted, word.proof, receipt.units)
        counted_nano = charge_nano(lease.price, counted, receipt.finish)
        if word.acceptance is None and not counted.output_tokens:
            # A client that left before the first output takes the node's count of the input.
            counted_nano = min(counted_nano, lone_amount_nano(receipt, lease, word.proof))
        return _smaller(receipt, counted_nano)
    if not is_due:
        return Verdict(ReceiptState.PENDING, None)
    return _smaller(receipt, lone_amount_nano(receipt, lease, word.proof))


def lone_amount_nano(receipt: Receipt, lease: Lease, proof: Proof) -> int:
    """What a receipt is worth on the node's word and the client's links alone."""
    if not proof.is_opened:
        return 0
    if proof.units_max is not None and not receipt.units.fits_in(proof.units_max):
        return 0  # An honest node keeps to what the opening allows.
    if not lease.units_max.output_tokens:
        return receipt.amount_nano
    window_tokens = terms_of(lease).window_tokens if lease.pays_tails else 0
    billed, price = receipt.units, lease.price
    cached = billed.cached_tokens
    if proof.has_countersigned:
        input_tokens = min(billed.input_tokens, proof.input_tokens_max)
        payable = Units(
            input_tokens=input_tokens,
            output_tokens=min(billed.output_tokens, proof.output_tokens + window_tokens),
            images=billed.images,
            tensor_elements=billed.tensor_elements,
            cached_tokens=min(cached, input_tokens),
        )
    else:
        input_tokens = min(billed.input_tokens, window_tokens)
        payable = Units(
            input_tokens=input_tokens,
            output_tokens=min(billed.output_tokens, window_tokens - input_tokens),
            cached_tokens=min(cached, input_tokens),
        )
        # Nothing but tokens is paid so early: a price per request would be earned by opening.
        price = replace(price, request_nano=0)
    charged_nano = charge_nano(price, payable, receipt.finish)
    return min(charged_nano, receipt.amount_nano)


def _at_least(counted: Units, proof: Proof, billed: Units) -> Units:
    """A client cannot take back what it signed, and a node gets no more than it bills. Which tokens
    were cached is the node's to say."""
    input_tokens = max(counted.input_tokens, min(proof.input_tokens_min, billed.input_tokens))
    return Units(
        input_tokens=input_tokens,
        output_tokens=max(counted.output_tokens, min(proof.output_tokens, billed.output_tokens)),
        images=counted.images,
        tensor_elements=counted.tensor_elements,
        cached_tokens=min(counted.cached_tokens, billed.cached_tokens),
    )


def _smaller(receipt: Receipt, counted_nano: int) -> Verdict:
    """Of two charges, with a mark if they differ."""
    if counted_nano == receipt.amount_nano:
        return Verdict(ReceiptState.SETTLED, counted_nano)
    return Verdict(ReceiptState.DISPUTED, min(receipt.amount_nano, counted_nano))
