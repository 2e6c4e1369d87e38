"""Tokens that cheat the contract, and calls back into it."""

from collections.abc import Iterator

import pytest

from contracts.chain import Call
from tests.contracts.evm import Evm, compile_source
from tests.contracts.market import TERMS, Market, Person, refused


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
        calls.withdraw(),
    ]
    for attack in attacks:
        market.token_do(client, "set_attack", market.address, attack.data)
        market.deposit(client, operator, 1)
        assert caught(market) == b"locked", attack


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
