"""Becoming and ceasing to be an operator, the terms, the switch, and what the contract owes."""

from dataclasses import replace

import pytest

from contracts.state import Terms
from tests.contracts.market import NOBODY, TERMS, Market, Person, refused


def test_a_stake_adds_up_and_starts_the_clock(market: Market, other: Person) -> None:
    with refused("stake: too small"):
        market.do(other, market.calls.stake(TERMS.stake_min - 1))
    market.do(other, market.calls.stake(TERMS.stake_min))
    assert market.operator(other).fresh_at == market.evm.now_s
    started = market.evm.now_s
    market.pass_time(10)
    events = market.do(other, market.calls.stake(1))
    assert events[0].name == "Staked"
    assert events[0].fields == {"operator": other.address, "amount": 1, "stake": 101}
    state = market.operator(other)
    assert (state.stake, state.fresh_at, state.next_epoch) == (101, started, 1)
    with refused("stake: nothing"):
        market.do(other, market.calls.stake(0))


def test_the_stake_leaves_after_two_more_final_roots(market: Market, operator: Person) -> None:
    market.settle(operator, {})
    with refused("unstake: not requested"):
        market.do(operator, market.calls.unstake())
    events = market.do(operator, market.calls.request_unstake())
    assert (events[0].name, events[0].fields["epoch"]) == ("UnstakeRequested", 3)
    with refused("unstake: requested"):
        market.do(operator, market.calls.request_unstake())
    market.settle(operator, {})
    with refused("unstake: too soon"):
        market.do(operator, market.calls.unstake())
    market.settle(operator, {})
    before = market.balance(operator.address)
    events = market.do(operator, market.calls.unstake())
    assert (events[0].name, events[0].fields["amount"]) == ("Unstaked", 1_000)
    assert market.balance(operator.address) == before + 1_000
    assert market.operator(operator).stake == 0
    with refused("unstake: nothing"):
        market.do(operator, market.calls.request_unstake())


def test_the_stake_stays_while_something_redeemed_is_unrooted(
    market: Market, operator: Person, client: Person, payee: Person
) -> None:
    market.deposit(client, operator, 100)
    market.do(operator, market.calls.request_unstake())
    market.settle(operator, {})
    market.redeem(client, operator, 7)
    market.settle(operator, {payee: 6})
    with refused("unstake: credit un-rooted"):
        market.do(operator, market.calls.unstake())
    market.post(operator, {payee: 7})
    with refused("unstake: root pending"):
        market.do(operator, market.calls.unstake())
    market.pass_time(TERMS.window_s)
    market.do(operator, market.calls.finalize(operator.address))
    assert market.answer(operator, market.calls.unstake()) == 1_000


def test_staking_again_withdraws_the_request(market: Market, operator: Person) -> None:
    market.do(operator, market.calls.request_unstake())
    market.do(operator, market.calls.stake(1))
    assert market.operator(operator).unstake_epoch == 0
    market.settle(operator, {})
    market.settle(operator, {})
    with refused("unstake: not requested"):
        market.do(operator, market.calls.unstake())


def test_an_unstaked_operator_has_nothing_to_take_twice(market: Market, operator: Person) -> None:
    market.do(operator, market.calls.request_unstake())
    market.settle(operator, {})
    market.settle(operator, {})
    market.do(operator, market.calls.unstake())
    with refused("unstake: not requested"):
        market.do(operator, market.calls.unstake())


def test_a_slashed_operator_that_asked_to_leave_has_nothing_to_take(
    market: Market, operator: Person, payee: Person
) -> None:
    market.do(operator, market.calls.request_unstake())
    market.post(operator, {})
    market.challenge(payee, operator, payee, 5)
    market.pass_time(TERMS.response_s)
    market.do(payee, market.calls.resolve(operator.address, payee.address))
    with refused("unstake: nothing"):
        market.do(operator, market.calls.unstake())


def test_a_return_after_everything_was_shared_restarts_the_clock(
    market: Market, operator: Person
) -> None:
    market.do(operator, market.calls.request_unstake())
    market.settle(operator, {})
    market.settle(operator, {})
    market.do(operator, market.calls.unstake())
    market.pass_time(TERMS.stale_after_s * 3)
    with refused("stale: nothing at stake"):
        market.do(operator, market.calls.declare_stale(operator.address))
    market.do(operator, market.calls.stake(100))
    with refused("stale: too soon"):
        market.do(operator, market.calls.declare_stale(operator.address))


def test_a_stake_after_a_slash_does_not_restart_the_clock(
    market: Market, operator: Person, client: Person, payee: Person
) -> None:
    market.deposit(client, operator, 100)
    market.redeem(client, operator, 50)
    market.post(operator, {})
    market.challenge(payee, operator, payee, 5)
    market.pass_time(TERMS.stale_after_s)
    market.do(payee, market.calls.resolve(operator.address, payee.address))
    market.do(operator, market.calls.stake(500))
    market.do(payee, market.calls.declare_stale(operator.address))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"window_s": 0}, "terms: no time to object"),
        ({"response_s": 0}, "terms: no time to object"),
        ({"exit_delay_s": 2_800}, "terms: exit too soon"),
        ({"stale_after_s": 1_400}, "terms: stale too soon"),
        ({"collection_s": 0}, "terms: no collection"),
        ({"bond": 0}, "terms: bond"),
        ({"bond": 51}, "terms: bond"),
        ({"window_s": 365 * 86_400 + 1}, "terms: too long"),
        ({"window_s": 2**256 - 1}, "terms: too long"),
        ({"response_s": 365 * 86_400 + 1}, "terms: too long"),
        ({"exit_delay_s": 365 * 86_400 + 1}, "terms: too long"),
        ({"stale_after_s": 365 * 86_400 + 1}, "terms: too long"),
        ({"collection_s": 365 * 86_400 + 1}, "terms: too long"),
    ],
)
def test_terms_that_cannot_work_are_not_deployed(
    market: Market, change: dict[str, int], reason: str
) -> None:
    with refused(reason):
        Market(market.evm, terms=replace(TERMS, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"exit_delay_s": 2_801},
        {"stale_after_s": 1_401},
        {"bond": 50},
        {"exit_delay_s": 365 * 86_400, "stale_after_s": 365 * 86_400, "collection_s": 365 * 86_400},
    ],
)
def test_terms_at_their_limits_are_deployed(market: Market, change: dict[str, int]) -> None:
    terms = replace(TERMS, **change)
    deployed = Market(market.evm, terms=terms)
    assert Terms(*deployed.ask("terms")) == terms
    assert deployed.ask("token").lower() == deployed.token.lower()


def test_a_token_without_code_is_not_deployed(market: Market) -> None:
    with refused("vault: no token"):
        data = market.artifact.deployment(NOBODY, tuple(market.ask("terms")))
        market.evm.deploy(data)


def test_only_the_owner_has_the_switch(market: Market, other: Person) -> None:
    calls = market.calls
    for call in (
        calls.set_paused(True),
        calls.propose_owner(other.address),
        calls.renounce_ownership(),
    ):
        with refused("owner: not you"):
            market.do(other, call)
    events = market.do(market.owner, calls.set_paused(True))
    assert (events[0].name, events[0].fields) == ("Paused", {"paused": True})
    assert market.ask("paused")


def test_the_switch_is_handed_over_in_two_steps(market: Market, other: Person) -> None:
    with refused("owner: not proposed"):
        market.do(other, market.calls.accept_ownership())
    events = market.do(market.owner, market.calls.propose_owner(other.address))
    assert (events[0].name, events[0].fields) == ("OwnerProposed", {"candidate": other.address})
    assert market.ask("owner").lower() == market.owner.address.lower()
    events = market.do(other, market.calls.accept_ownership())
    assert (events[0].name, events[0].fields) == ("OwnerChanged", {"owner": other.address})
    assert market.ask("owner").lower() == other.address.lower()
    with refused("owner: not proposed"):
        market.do(other, market.calls.accept_ownership())
    with refused("owner: not you"):
        market.do(market.owner, market.calls.set_paused(True))


def test_the_switch_is_given_up_only_in_the_open_position(
    market: Market, operator: Person, client: Person
) -> None:
    market.do(market.owner, market.calls.propose_owner(client.address))
    market.do(market.owner, market.calls.set_paused(True))
    with refused("owner: paused"):
        market.do(market.owner, market.calls.renounce_ownership())
    market.do(market.owner, market.calls.set_paused(False))
    market.do(market.owner, market.calls.renounce_ownership())
    assert market.ask("owner") == NOBODY
    with refused("owner: not proposed"):
        market.do(client, market.calls.accept_ownership())
    market.deposit(client, operator, 1)


def test_the_contract_owes_nothing_to_strangers(market: Market, other: Person) -> None:
    with refused("vault: nothing owed"):
        market.do(other, market.calls.withdraw(other.address))
