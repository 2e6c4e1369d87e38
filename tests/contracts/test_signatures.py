"""Who may sign what: replays, malleable signatures, contract wallets."""

from dataclasses import replace

import pytest

from contracts.abi import Artifact
from contracts.chain import Call
from contracts.settlement import SettlementCalls
from contracts.units import Address
from contracts.vouchers import Domain, Promise, SignedVoucher, Voucher, digest_of
from tests.contracts.evm import compile_source
from tests.contracts.market import TERMS, Market, Person, refused

# Calldata that does not fit its type is refused before any of our code runs.
NO_REASON = "no reason given"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.fixture
def funded(market: Market, client: Person, operator: Person) -> Person:
    market.deposit(client, operator, 100)
    return operator


def redeem(market: Market, operator: Person, client: Address, ceiling: int, sig: bytes) -> int:
    item = SignedVoucher(Voucher(client, operator.address, ceiling), sig, ceiling)
    return market.answer(operator, market.calls.redeem([item]))


def test_a_voucher_is_for_one_contract(market: Market, client: Person, funded: Person) -> None:
    voucher = Voucher(client.address, funded.address, 50)
    elsewhere = Domain(market.domain.chain_id, market.token)
    with refused("redeem: not signed"):
        redeem(market, funded, client.address, 50, client.key.sign(elsewhere, voucher))


def test_a_voucher_is_for_one_chain(market: Market, client: Person, funded: Person) -> None:
    voucher = Voucher(client.address, funded.address, 50)
    elsewhere = Domain(market.domain.chain_id + 1, market.address)
    with refused("redeem: not signed"):
        redeem(market, funded, client.address, 50, client.key.sign(elsewhere, voucher))


def test_after_a_chain_splits_old_signatures_stay_on_the_old_side(
    market: Market, client: Person, funded: Person
) -> None:
    item = market.voucher(client, funded, 50)
    with market.evm.forked(market.domain.chain_id + 1), refused("redeem: not signed"):
        market.do(funded, market.calls.redeem([item]))
    assert market.answer(funded, market.calls.redeem([item])) == 50


def test_a_voucher_is_for_one_operator(
    market: Market, client: Person, funded: Person, other: Person
) -> None:
    market.do(other, market.calls.stake(1_000))
    market.deposit(client, other, 100)
    with refused("redeem: not signed"):
        market.do(other, market.calls.redeem([market.voucher(client, funded, 50)]))


def test_a_voucher_names_its_ceiling_and_its_client(
    market: Market, client: Person, funded: Person, other: Person
) -> None:
    market.deposit(other, funded, 100)
    signature = market.voucher(client, funded, 50).signature
    with refused("redeem: not signed"):
        redeem(market, funded, client.address, 51, signature)
    with refused("redeem: not signed"):
        redeem(market, funded, other.address, 50, signature)
    assert redeem(market, funded, client.address, 50, signature) == 50


def test_the_other_form_of_a_signature_is_refused(
    market: Market, client: Person, funded: Person
) -> None:
    signature = market.voucher(client, funded, 50).signature
    s = ORDER - int.from_bytes(signature[32:64])
    mirrored = signature[:32] + s.to_bytes(32) + bytes([55 - signature[64]])
    with refused("redeem: not signed"):
        redeem(market, funded, client.address, 50, mirrored)


@pytest.mark.parametrize("signature", [b"", bytes(64), bytes(65), b"\xff" * 65])
def test_no_signature_at_all_is_refused(
    market: Market, client: Person, funded: Person, signature: bytes
) -> None:
    with refused("redeem: not signed"):
        redeem(market, funded, client.address, 50, signature)


def test_nobody_signs_for_the_zero_address(market: Market, funded: Person, other: Person) -> None:
    """A failed recovery answers zero, which must not count as the zero address's consent."""
    zero = Address("0x" + "00" * 20)
    with refused("redeem: not signed"):
        redeem(market, funded, zero, 50, bytes(65))


@pytest.fixture
def wallet(market: Market, client: Person, operator: Person) -> tuple[Artifact, Address]:
    """A contract wallet of the client's with 100 in escrow."""
    artifact = compile_source("Wallet")
    address = market.evm.deploy(artifact.deployment(client.address))
    market.do(client, market.calls.deposit(address, operator.address, 100))
    return artifact, address


def sign_for(market: Market, client: Person, wallet: Address, operator: Person) -> bytes:
    voucher = Voucher(wallet, operator.address, 50)
    return client.key.sign_digest(digest_of(market.domain, voucher))


def test_a_contract_wallet_signs_by_its_own_rules(
    market: Market, client: Person, operator: Person, wallet: tuple[Artifact, Address]
) -> None:
    signature = sign_for(market, client, wallet[1], operator)
    assert redeem(market, operator, wallet[1], 50, signature) == 50
    with refused("redeem: not signed"):
        redeem(market, operator, wallet[1], 51, signature)


def test_a_wallet_of_several_owners_has_room_for_their_signatures(
    market: Market, client: Person, operator: Person, wallet: tuple[Artifact, Address]
) -> None:
    signature = sign_for(market, client, wallet[1], operator)
    longest, longer = signature + bytes(1_024 - 65), signature + bytes(1_024 - 64)
    with refused(NO_REASON):
        redeem(market, operator, wallet[1], 50, longest)
    with refused(NO_REASON):
        redeem_alone(market, operator, wallet[1], (50, 50), longer)
    assert redeem_alone(market, operator, wallet[1], (50, 30), longest) == 30
    assert market.operator(operator).credit == 30
    assert redeem(market, operator, wallet[1], 50, signature) == 20


def test_a_voucher_alone_meets_the_same_refusals(
    market: Market,
    client: Person,
    operator: Person,
    other: Person,
    wallet: tuple[Artifact, Address],
) -> None:
    signature = sign_for(market, client, wallet[1], operator) + bytes(65)
    with refused("redeem: over the ceiling"):
        redeem_alone(market, operator, wallet[1], (50, 51), signature)
    with refused("redeem: not signed"):
        redeem_alone(market, operator, wallet[1], (51, 50), signature)
    with refused("redeem: not signed"):
        redeem_alone(market, operator, other.address, (50, 50), signature)
    with refused("redeem: post a root first"):
        redeem_alone(market, other, wallet[1], (50, 50), signature)
    assert redeem_alone(market, operator, wallet[1], (50, 50), signature) == 50
    assert redeem_alone(market, operator, wallet[1], (50, 50), signature) == 0
    market.pass_time(TERMS.stale_after_s)
    market.do(other, market.calls.declare_stale(operator.address))
    with refused("redeem: stale"):
        redeem_alone(market, operator, wallet[1], (50, 50), signature)


def redeem_alone(
    market: Market,
    operator: Person,
    client: Address,
    amounts: tuple[int, int],
    signature: bytes,
) -> int:
    """`amounts` are what the client signed, and what the operator charges."""
    item = SignedVoucher(Voucher(client, operator.address, amounts[0]), signature, amounts[1])
    return market.answer(operator, market.calls.redeem_from_wallet(item))


@pytest.mark.parametrize("mood", [1, 2, 3])
def test_a_wallet_that_answers_wrongly_or_burns_gas_has_not_signed(
    market: Market,
    client: Person,
    operator: Person,
    wallet: tuple[Artifact, Address],
    mood: int,
) -> None:
    artifact, address = wallet
    market.evm.send(client.address, Call(address, artifact.encode("set_mood", mood)))
    with refused("redeem: not signed"):
        redeem(market, operator, address, 50, sign_for(market, client, address, operator))


def test_a_wallet_that_answers_the_first_bytes_only_has_not_signed(
    market: Market, client: Person, operator: Person
) -> None:
    """The standard's answer is a whole word; what is shorter could be anything's beginning."""
    address = market.evm.deploy(compile_source("ShortWallet").deployment())
    market.do(client, market.calls.deposit(address, operator.address, 100))
    with refused("redeem: not signed"):
        redeem(market, operator, address, 50, bytes(65))


def test_a_contract_that_is_no_wallet_has_not_signed(
    market: Market, client: Person, operator: Person
) -> None:
    market.do(client, market.calls.deposit(market.token, operator.address, 100))
    with refused("redeem: not signed"):
        redeem(market, operator, market.token, 50, bytes(65))


def test_a_contract_wallet_promises_nothing(
    market: Market, client: Person, wallet: tuple[Artifact, Address], payee: Person
) -> None:
    """It can become an operator, but it could take its word back: nodes must not work for it."""
    artifact, address = wallet

    def run(call: Call) -> None:
        market.evm.send(client.address, Call(address, artifact.encode("run", call.to, call.data)))

    market.token_do(client, "mint", address, 1_000)
    run(Call(market.token, market.token_artifact.encode("approve", market.address, 1_000)))
    run(market.calls.stake(1_000))
    run(market.calls.post_root(1, bytes(32), 0, bytes(32)))
    promise = Promise(address, payee.address, 1, 5)
    signature = client.key.sign_digest(digest_of(market.domain, promise))
    with refused("challenge: not signed"):
        market.do(payee, market.calls.challenge(promise, signature))
    market.pass_time(TERMS.window_s)
    market.do(payee, market.calls.finalize(address))
    market.pass_time(TERMS.stale_after_s)
    market.do(payee, market.calls.declare_stale(address))
    with refused("file: not signed"):
        market.do(payee, market.calls.file_promise(promise, signature))


def test_a_promise_is_not_a_voucher(
    market: Market, operator: Person, client: Person, payee: Person
) -> None:
    """Types are part of the digest, so no signature means two things."""
    promise, signature = market.promise(operator, payee, 1, 50)
    market.deposit(client, operator, 100)
    with refused("redeem: not signed"):
        redeem(market, operator, client.address, 50, signature)
    assert SettlementCalls(market.address).challenge(promise, signature).to == market.address


def test_a_promise_does_not_count_on_a_chain_that_split_off(
    market: Market, operator: Person, payee: Person
) -> None:
    market.post(operator, {})
    promise = market.promise(operator, payee, 1, 50)
    with market.evm.forked(market.domain.chain_id + 7), refused("challenge: not signed"):
        market.do(payee, market.calls.challenge(*promise))
    market.do(payee, market.calls.challenge(*promise))


def test_a_promise_says_who_when_and_how_much(
    market: Market, operator: Person, payee: Person, other: Person
) -> None:
    market.post(operator, {})
    promise, signature = market.promise(operator, payee, 1, 50)
    for forged in (
        replace(promise, payee=other.address),
        replace(promise, epoch=0),
        replace(promise, cumulative=51),
    ):
        with refused("challenge: not signed"):
            market.do(payee, market.calls.challenge(forged, signature))
    market.do(payee, market.calls.challenge(promise, signature))
