"""What a receipt is worth, by what its client says of it."""

from dataclasses import replace

from coordinator.settling.verdicts import Verdict, judge_receipt
from protocol.endings import Finish, ReceiptState
from protocol.messages import Acceptance
from protocol.pricing import Units
from protocol.receipts import charge_nano
from tests.protocol.makers import PRICE, make_chain

CHAIN = make_chain()
RECEIPT = CHAIN.receipt.message
LEASE = CHAIN.lease.message


def verdict(acceptance: Acceptance | None, *, is_overdue: bool = False) -> Verdict:
    return judge_receipt(RECEIPT, acceptance, LEASE, is_overdue=is_overdue)


def test_a_receipt_that_the_client_agrees_to_is_paid_at_once() -> None:
    agreed = verdict(CHAIN.acceptance.message)
    assert agreed == Verdict(ReceiptState.SETTLED, RECEIPT.amount_nano)


def test_without_the_clients_word_the_node_waits_and_is_then_paid() -> None:
    assert verdict(None) == Verdict(ReceiptState.PENDING, None)
    assert verdict(None, is_overdue=True) == Verdict(ReceiptState.SETTLED, RECEIPT.amount_nano)


def test_of_two_counts_the_smaller_is_paid() -> None:
    for output_tokens in (0, 1, 3):
        counted = Units(RECEIPT.units.input_tokens, output_tokens)
        disputed = replace(CHAIN.acceptance.message, units=counted, agrees=False)
        smaller = min(RECEIPT.amount_nano, charge_nano(PRICE, counted, Finish.STOP))
        assert verdict(disputed) == Verdict(ReceiptState.DISPUTED, smaller)


def test_a_receipt_of_nothing_frees_the_hold_at_once() -> None:
    nothing = replace(RECEIPT, units=Units(), amount_nano=0, finish=Finish.REFUSED)
    found = judge_receipt(nothing, None, LEASE, is_overdue=False)
    assert found == Verdict(ReceiptState.SETTLED, 0)
