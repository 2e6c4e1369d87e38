"""Tokens that cheat the contract, and calls back into it."""

import json
from collections.abc import Iterator

import pytest

from contracts.build import ARTIFACTS
from contracts.chain import Call
from contracts.units import Address
from tests.contracts.evm import Evm, compile_source
from tests.contracts.market import BURN_ADDRESS, TERMS, Market, Person, refused


@pytest.fixture(scope="module")
def odd_market() -> Market:
    return Market(Evm(), token=compile_source("OddToken"))


@pytest.fixture
def market(odd_market: Market) -> Iterator[Market]:
    with odd_market.evm.anchored():
        yield odd_market


def test_a_token_that_keeps_a_fee_is_refused(
    market: Market, client: Person, operator: Person
) -> None:
    market.token_do(client, "set_fee", 1)
    with refused("vault: token took a fee"):
        market.deposit(client, operator, 100)


def test_a_token_that_gives_too_much_is_refused(
    market: Market, client: Person, operator: Person
) -> None:
    market.token_do(client, "set_gift", 1)
    with refused("vault: token took a fee"):
        market.deposit(client, operator, 100)


def test_a_token_that_answers_false_is_refused(
    market: Market, client: Person, operator: Person
) -> None:
    market.deposit(client, operator, 100)
    market.do(client, market.calls.request_exit(operator.address))
    market.pass_time(TERMS.exit_delay_s)
    market.token_do(client, "set_lies", True)
    with refused("vault: token refused"):
        market.deposit(client, client, 100)
    with refused("vault: token refused"):
        market.do(client, market.calls.exit(operator.address))
    market.token_do(client, "set_lies", False)
    market.do(client, market.calls.exit(operator.address))


def test_a_token_that_answers_nothing_works(market: Market) -> None:
    silent = Market(market.evm, token=compile_source("SilentToken"))
    client, operator = silent.person("client"), silent.person("operator")
    silent.do(operator, silent.calls.stake(100))
    silent.deposit(client, operator, 50)
    assert silent.redeem(client, operator, 20) == 20


def test_a_frozen_account_holds_up_its_own_money_only(
    market: Market, client: Person, operator: Person, payee: Person, other: Person
) -> None:
    market.deposit(client, operator, 100)
    market.redeem(client, operator, 60)
    tree = market.settle(operator, {payee: 30, other: 30})
    freeze(market, payee.address)
    leaves = [tree.leaf(person.address) for person in (payee, other)]
    with refused("odd: frozen"):
        market.do(other, market.calls.claim_many(operator.address, leaves))
    assert market.claim(operator, tree, other) == 30
    freeze(market, payee.address, frozen=False)
    assert market.claim(operator, tree, payee) == 30


def test_no_frozen_account_keeps_a_dispute_from_ending(
    market: Market, operator: Person, payee: Person, other: Person
) -> None:
    """Not the challenger, not the operator, and not even the address that burns."""
    for address in (payee.address, operator.address, BURN_ADDRESS):
        freeze(market, address)
    market.post(operator, {})
    freeze(market, payee.address, frozen=False)
    market.challenge(payee, operator, payee, 5)
    freeze(market, payee.address)
    market.pass_time(TERMS.response_s)
    market.do(other, market.calls.resolve(operator.address, payee.address))
    for address in (payee.address, BURN_ADDRESS):
        with refused("odd: frozen"):
            market.do(other, market.calls.withdraw(address))
    freeze(market, BURN_ADDRESS, frozen=False)
    assert market.answer(other, market.calls.withdraw(BURN_ADDRESS)) == 500
    freeze(market, payee.address, frozen=False)
    assert market.answer(other, market.calls.withdraw(payee.address)) == 500 + TERMS.bond


def test_a_frozen_burn_address_does_not_save_a_stale_operator(
    market: Market, operator: Person, other: Person
) -> None:
    freeze(market, BURN_ADDRESS)
    market.pass_time(TERMS.stale_after_s)
    market.do(other, market.calls.declare_stale(operator.address))
    assert market.operator(operator).stake == 0
    assert market.ask("owed", BURN_ADDRESS) == 500


def freeze(market: Market, address: Address, *, frozen: bool = True) -> None:
    market.token_do(market.owner, "set_frozen", address, frozen)


def test_every_door_is_locked_while_tokens_move(
    market: Market, client: Person, operator: Person, payee: Person
) -> None:
    """The token calls back into each function, in the middle of a deposit."""
    calls, address = market.calls, operator.address
    leaf = market.post(operator, {payee: 0}).leaf(payee.address)
    promise = market.promise(operator, payee, 1, 5)
    attacks = [
        calls.deposit(client.address, address, 1),
        calls.deposit_with_permit(client.address, address, 1, deadline=0, signature=bytes(65)),
        calls.redeem([market.voucher(client, operator, 1)]),
        calls.redeem_from_wallet(market.voucher(client, operator, 1)),
        calls.request_exit(address),
        calls.exit(address),
        calls.stake(1),
        calls.request_unstake(),
        calls.unstake(),
        calls.post_root(2, bytes(32), 0, bytes(32)),
        calls.challenge(*promise),
        calls.respond(address, leaf),
        calls.resolve(address, payee.address),
        calls.reclaim_bond(address, 1, payee.address),
        calls.finalize(address),
        calls.claim(address, leaf),
        calls.claim_many(address, [leaf]),
        calls.declare_stale(address),
        calls.file_promise(*promise),
        calls.claim_stale(address, payee.address),
        calls.claim_remainder(address),
        calls.withdraw(address),
        calls.set_paused(True),
        calls.propose_owner(address),
        calls.accept_ownership(),
        calls.renounce_ownership(),
    ]
    assert len({attack.data[:4] for attack in attacks}) == len(doors())
    for attack in attacks:
        market.token_do(client, "set_attack", market.address, attack.data)
        market.deposit(client, operator, 1)
        assert caught(market) == b"locked", attack


def doors() -> list[str]:
    """Every function that changes something."""
    abi = json.loads((ARTIFACTS / "Settlement.json").read_text())["abi"]
    return [
        entry["name"]
        for entry in abi
        if entry["type"] == "function" and entry["stateMutability"] == "nonpayable"
    ]


def test_a_second_payment_in_the_middle_of_the_first_is_locked_out(
    market: Market, client: Person, operator: Person, payee: Person
) -> None:
    market.deposit(client, operator, 100)
    market.redeem(client, operator, 50)
    tree = market.settle(operator, {payee: 50})
    claim = market.calls.claim(operator.address, tree.leaf(payee.address))
    market.token_do(client, "set_attack", market.address, claim.data)
    assert market.answer(payee, claim) == 50
    assert caught(market) == b"locked"
    finalize = market.calls.finalize(operator.address)
    market.post(operator, {payee: 50})
    market.pass_time(TERMS.window_s)
    market.token_do(client, "set_attack", market.address, finalize.data)
    market.deposit(client, operator, 1)
    assert caught(market) == b"locked"


def caught(market: Market) -> bytes:
    return bytes(market.evm.ask(market.token_artifact, market.token, "caught"))


def test_the_books_are_written_before_tokens_move(
    market: Market, client: Person, operator: Person
) -> None:
    """Views are locked too, so nobody reads a state that is half way."""
    view = Call(market.address, market.artifact.encode("terms"))
    market.token_do(client, "set_attack", market.address, view.data)
    market.deposit(client, operator, 1)
    assert caught(market) == b"locked"
