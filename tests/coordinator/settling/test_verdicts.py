"""What a receipt is worth, by what its client says of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.settling.verdicts import (
    ClientWord,
    Verdict,
    judge,
)
from protocol.countersigning import UNOPENED, Proof, terms_of
from protocol.endings import Finish, ReceiptState
from protocol.messages import Acceptance, Lease, Receipt
from protocol.pricing import Units
from protocol.receipts import charge_nano
from tests.protocol.makers import PRICE, make_chain

CHAIN = make_chain()
RECEIPT = CHAIN.receipt.message
LEASE = CHAIN.lease.message


def verdict(acceptance: Acceptance) -> Verdict:
    return judge(RECEIPT, LEASE, ClientWord(acceptance), is_due=False)


def test_a_receipt_that_the_client_agrees_to_is_paid_at_once() -> None:
    agreed = verdict(CHAIN.acceptance.message)
    assert agreed == Verdict(ReceiptState.SETTLED, RECEIPT.amount_nano)


def test_of_two_counts_the_smaller_is_paid() -> None:
    for output_tokens in (0, 1, 3):
        counted = Units(RECEIPT.units.input_tokens, output_tokens)
        disputed = replace(CHAIN.acceptance.message, units=counted, agrees=False)
        smaller = min(RECEIPT.amount_nano, charge_nano(PRICE, counted, Finish.STOP))
        assert verdict(disputed) == Verdict(ReceiptState.DISPUTED, smaller)


def test_a_receipt_of_nothing_frees_the_hold_at_once() -> None:
    nothing = replace(RECEIPT, units=Units(), amount_nano=0, finish=Finish.REFUSED)
    found = judge(nothing, LEASE, ClientWord(), is_due=False)
    assert found == Verdict(ReceiptState.SETTLED, 0)


def test_which_tokens_were_cached_is_the_nodes_to_say() -> None:
    lease = replace(LEASE, price=replace(PRICE, cached_nano_per_mtok=0))
    tokens = RECEIPT.units.input_tokens
    for billed_cached, counted_cached in ((0, tokens), (tokens, 0), (2, 1)):
        billed = replace(RECEIPT.units, cached_tokens=billed_cached)
        amount_nano = charge_nano(lease.price, billed, Finish.STOP)
        receipt = replace(RECEIPT, units=billed, amount_nano=amount_nano)
        counted = replace(RECEIPT.units, cached_tokens=counted_cached)
        word = ClientWord(replace(CHAIN.acceptance.message, units=counted, agrees=False))
        paid = judge(receipt, lease, word, is_due=False).amount_nano
        assert paid == amount_nano


# Lone receipts, by what the client signed while the text streamed.

PRICE_PER_REQUEST = replace(PRICE, request_nano=7)
LONG_LEASE = replace(
    LEASE, units_max=Units(2_000, 1_000), ceiling_nano=10**9, price=PRICE_PER_REQUEST
)
W = LONG_LEASE.window_tokens


def bill(units: Units, finish: Finish = Finish.CANCELLED, lease: Lease = LONG_LEASE) -> Receipt:
    amount_nano = charge_nano(lease.price, units, finish)
    return replace(RECEIPT, units=units, amount_nano=amount_nano, finish=finish)


def paid_for(units: Units, *, request: bool = True) -> int:
    price = PRICE_PER_REQUEST if request else PRICE
    return charge_nano(price, units, Finish.CANCELLED)


def lone(units: Units, proof: Proof, lease: Lease = LONG_LEASE) -> int:
    found = judge(bill(units, lease=lease), lease, ClientWord(proof=proof), is_due=True)
    assert found.amount_nano is not None
    return found.amount_nano


SIGNED = Proof(
    is_opened=True,
    has_countersigned=True,
    input_tokens_min=97,
    input_tokens_max=128,
    output_tokens=64,
)


def test_a_receipt_for_a_job_that_no_client_opened_is_worth_nothing() -> None:
    assert lone(LONG_LEASE.units_max, UNOPENED) == 0


def test_a_lone_receipt_waits_until_its_job_can_be_over() -> None:
    word = ClientWord(proof=SIGNED)
    found = judge(bill(Units(100, 64)), LONG_LEASE, word, is_due=False)
    assert found == Verdict(ReceiptState.PENDING, None)


def test_before_the_first_link_one_window_is_paid_input_and_output_together() -> None:
    opened = Proof(is_opened=True)
    assert lone(LONG_LEASE.units_max, opened) == paid_for(Units(W), request=False)
    assert lone(Units(10, 100), opened) == paid_for(Units(10, W - 10), request=False)
    assert lone(Units(10, 2), opened) == paid_for(Units(10, 2), request=False)


def test_what_is_paid_exceeds_what_the_client_signed_by_one_window_at_most() -> None:
    assert lone(LONG_LEASE.units_max, SIGNED) == paid_for(Units(128, 64 + W))
    assert lone(Units(120, 70), SIGNED) == paid_for(Units(120, 70))


def test_a_lone_receipt_keeps_to_its_price_for_cached_tokens() -> None:
    price = replace(PRICE_PER_REQUEST, cached_nano_per_mtok=0)
    lease = replace(LONG_LEASE, price=price)
    cheap = Units(97, 64, cached_tokens=97)
    assert lone(cheap, SIGNED, lease) == charge_nano(price, cheap, Finish.CANCELLED)
    before = Units(W + 5, 0, cached_tokens=W + 5)
    assert lone(before, Proof(is_opened=True), lease) == 0


def test_tails_are_not_paid_where_the_lease_says_so() -> None:
    lease = replace(LONG_LEASE, pays_tails=False)
    assert lone(Units(120, 70), SIGNED, lease) == paid_for(Units(120, 64))
    assert lone(Units(120, 70), Proof(is_opened=True), lease) == 0


def test_a_client_cannot_take_back_what_it_signed() -> None:
    nothing = replace(CHAIN.acceptance.message, units=Units(), agrees=False)
    for word in (ClientWord(nothing, None, SIGNED), ClientWord(None, Units(), SIGNED)):
        found = judge(bill(Units(120, 70)), LONG_LEASE, word, is_due=False)
        assert found == Verdict(ReceiptState.DISPUTED, paid_for(Units(97, 64)))


def test_a_node_that_bills_less_than_was_signed_gets_what_it_bills() -> None:
    word = ClientWord(None, Units(), SIGNED)
    found = judge(bill(Units(10, 5)), LONG_LEASE, word, is_due=False)
    assert found == Verdict(ReceiptState.SETTLED, paid_for(Units(10, 5)))


def test_a_clients_word_on_a_cut_stream_counts_like_an_acceptance() -> None:
    word = ClientWord(None, Units(110, 69), SIGNED)
    found = judge(bill(LONG_LEASE.units_max), LONG_LEASE, word, is_due=False)
    assert found == Verdict(ReceiptState.DISPUTED, paid_for(Units(110, 69)))


def test_a_client_that_got_nothing_owes_nothing() -> None:
    word = ClientWord(None, Units(), Proof(is_opened=True))
    found = judge(bill(LONG_LEASE.units_max), LONG_LEASE, word, is_due=False)
    assert found == Verdict(ReceiptState.DISPUTED, 0)


def test_an_answer_in_one_piece_is_paid_whole_once_it_was_opened() -> None:
    lease = replace(LONG_LEASE, units_max=Units(100, 0, 2))
    assert lone(Units(90, 0, 2), Proof(is_opened=True), lease) == paid_for(Units(90, 0, 2))
    assert lone(Units(90, 0, 2), UNOPENED, lease) == 0


@pytest.mark.parametrize("proof", [Proof(is_opened=True), SIGNED])
def test_a_lone_receipt_beyond_what_its_opening_allows_is_worth_nothing(proof: Proof) -> None:
    bound = replace(proof, units_max=Units(120, 70))
    assert lone(Units(120, 70), bound) == lone(Units(120, 70), proof) > 0
    assert lone(Units(121, 70), bound) == lone(Units(120, 71), bound) == 0


@given(
    st.builds(Units, st.integers(0, 2_000), st.integers(0, 1_000)),
    st.integers(0, 1_500),
    st.integers(0, 900),
)
def test_a_node_gains_at_most_a_window_and_a_client_never_undercuts_its_links(
    billed: Units, got_input: int, got_output: int
) -> None:
    """Whatever a node bills, of what an honest client got and signed."""
    terms = terms_of(LONG_LEASE)
    least, most = terms.signed_input(terms.input_index(got_input))
    signed = terms.signed_output(terms.output_index(got_output))
    proof = Proof(True, True, least, most, signed)
    paid_nano = lone(billed, proof)
    bound = Units(got_input + terms.input_step_tokens, got_output + terms.window_tokens)
    assert paid_nano <= paid_for(bound)
    honest = lone(Units(got_input, got_output), proof)
    assert honest == paid_for(Units(got_input, got_output)) * bool(got_input or got_output)
