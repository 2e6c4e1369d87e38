"""Posting, challenging, answering, cancelling and finalizing roots."""

import pytest

from contracts.merkle_sum import SumTree
from contracts.vouchers import Promise
from tests.contracts.market import BURN_ADDRESS, TERMS, Market, Person, refused


def test_a_root_is_posted_with_the_ledgers_head(market: Market, funded: Person) -> None:
    anchor = bytes(range(32))
    events = market.do(funded, market.calls.post_root(1, b"r" * 32, 300, anchor))
    assert events[0].name == "RootPosted"
    assert events[0].fields == {
        "operator": funded.address,
        "epoch": 1,
        "root": b"r" * 32,
        "total": 300,
        "ledger_root": anchor,
    }
    pending = market.pending(funded)
    assert (pending.root, pending.total, pending.epoch) == (b"r" * 32, 300, 1)
    assert (pending.posted_at, pending.disputes) == (market.evm.now_s, 0)
    assert market.operator(funded).next_epoch == 2
    with refused("root: one is pending"):
        market.do(funded, market.calls.post_root(2, b"r" * 32, 300, anchor))


def test_a_total_lies_between_the_last_total_and_the_credit(
    market: Market, funded: Person, payee: Person
) -> None:
    with refused("root: total over credit"):
        market.post(funded, {payee: 301})
    market.settle(funded, {payee: 200})
    with refused("root: total goes back"):
        market.post(funded, {payee: 199})
    market.settle(funded, {payee: 200})
    market.settle(funded, {payee: 300})
    assert market.active(funded).total == 300


@pytest.mark.parametrize("epoch", [0, 2, 2**255])
def test_epochs_come_one_after_the_other(market: Market, funded: Person, epoch: int) -> None:
    with refused("root: not the next epoch"):
        market.do(funded, market.calls.post_root(epoch, bytes(32), 0, bytes(32)))


def test_a_root_needs_the_smallest_stake(market: Market, other: Person) -> None:
    with refused("root: not the next epoch"):
        market.do(other, market.calls.post_root(1, bytes(32), 0, bytes(32)))
    market.do(other, market.calls.stake(TERMS.stake_min))
    slash(market, other, other)
    with refused("root: stake too small"):
        market.do(other, market.calls.post_root(2, bytes(32), 0, bytes(32)))
    market.do(other, market.calls.stake(TERMS.stake_min))
    market.do(other, market.calls.post_root(2, bytes(32), 0, bytes(32)))


def test_a_root_grows_by_half_the_stake_at_most(
    market: Market, client: Person, operator: Person, payee: Person
) -> None:
    market.deposit(client, operator, 1_000)
    market.redeem(client, operator, 400)
    slash(market, operator, payee)
    market.do(operator, market.calls.stake(798))
    with refused("root: over the stake"):
        market.post(operator, {payee: 400})
    market.do(operator, market.calls.stake(2))
    market.post(operator, {payee: 400})


def slash(market: Market, operator: Person, payee: Person) -> None:
    market.post(operator, {})
    market.challenge(payee, operator, payee, 5)
    market.pass_time(TERMS.response_s)
    market.do(payee, market.calls.resolve(operator.address, payee.address))


def test_a_root_becomes_final_when_its_window_is_over(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    with refused("finalize: no root"):
        market.do(other, market.calls.finalize(funded.address))
    tree = market.post(funded, {payee: 300})
    posted = market.evm.now_s
    market.pass_time(TERMS.window_s - 1)
    with refused("finalize: too soon"):
        market.do(other, market.calls.finalize(funded.address))
    market.pass_time(1)
    events = market.do(other, market.calls.finalize(funded.address))
    assert (events[0].name, events[0].fields["total"]) == ("RootFinal", 300)
    assert market.active(funded).root == tree.root
    assert market.pending(funded).epoch == 0
    assert market.operator(funded).fresh_at == posted
    with refused("finalize: no root"):
        market.do(other, market.calls.finalize(funded.address))


def test_a_challenge_is_taken_until_the_window_is_over(
    market: Market, funded: Person, payee: Person
) -> None:
    with refused("challenge: no root"):
        market.challenge(payee, funded, payee, 5)
    market.post(funded, {})
    market.pass_time(TERMS.window_s - 1)
    with market.evm.anchored():
        events = market.challenge(payee, funded, payee, 5)
        assert events[0].name == "Challenged"
        assert events[0].fields["cumulative"] == 5
        assert market.pending(funded).disputes == 1
    market.pass_time(1)
    with refused("challenge: too late"):
        market.challenge(payee, funded, payee, 5)


def test_a_challenge_costs_a_bond(market: Market, funded: Person, payee: Person) -> None:
    market.post(funded, {})
    before = market.balance(payee.address)
    market.challenge(payee, funded, payee, 5)
    assert market.balance(payee.address) == before - TERMS.bond


def test_only_the_operators_own_promise_challenges(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    market.post(funded, {})
    promise = Promise(funded.address, payee.address, 1, 5)
    forged = Promise(other.address, payee.address, 1, 5)
    signature = other.key.sign(market.domain, forged)
    with refused("challenge: not signed"):
        market.do(payee, market.calls.challenge(promise, signature))
    with refused("challenge: not signed"):
        market.do(payee, market.calls.challenge(promise))
    with refused("challenge: not more"):
        market.challenge(payee, funded, payee, 0)


def test_a_promise_binds_its_own_epoch_and_later_ones(
    market: Market, funded: Person, payee: Person
) -> None:
    market.settle(funded, {})
    market.post(funded, {})
    with refused("challenge: for a later root"):
        market.challenge(payee, funded, payee, 5, epoch=3)
    with market.evm.anchored():
        market.challenge(payee, funded, payee, 5, epoch=2)
    market.challenge(payee, funded, payee, 5, epoch=1)


def test_an_answer_gives_the_bond_to_the_operator(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = market.post(funded, {payee: 40, other: 60})
    market.challenge(payee, funded, payee, 40)
    leaf = tree.leaf(payee.address)
    events = market.do(other, market.calls.respond(funded.address, leaf))
    assert (events[0].name, events[0].fields["cumulative"]) == ("Responded", 40)
    assert market.pending(funded).disputes == 0
    assert market.owed(funded) == TERMS.bond
    before = market.balance(funded.address)
    events = market.do(other, market.calls.withdraw(funded.address))
    assert (events[0].name, events[0].fields["amount"]) == ("Withdrawn", TERMS.bond)
    assert market.balance(funded.address) == before + TERMS.bond
    with refused("respond: no challenge"):
        market.do(other, market.calls.respond(funded.address, leaf))
    with refused("vault: nothing owed"):
        market.do(funded, market.calls.withdraw(funded.address))


def test_an_answer_needs_a_leaf_that_is_large_enough_and_proven(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = market.post(funded, {payee: 40, other: 60})
    market.challenge(payee, funded, payee, 41)
    with refused("respond: leaf too small"):
        market.do(funded, market.calls.respond(funded.address, tree.leaf(payee.address)))
    forged = SumTree(funded.address, {payee.address: 41, other.address: 59})
    with refused("respond: bad proof"):
        market.do(funded, market.calls.respond(funded.address, forged.leaf(payee.address)))
    with refused("respond: no challenge"):
        market.do(funded, market.calls.respond(funded.address, tree.leaf(other.address)))


def test_an_answer_is_taken_until_its_deadline(
    market: Market, funded: Person, payee: Person
) -> None:
    tree = market.post(funded, {payee: 40})
    market.challenge(payee, funded, payee, 40)
    respond = market.calls.respond(funded.address, tree.leaf(payee.address))
    resolve = market.calls.resolve(funded.address, payee.address)
    market.pass_time(TERMS.response_s - 1)
    with refused("resolve: too soon"):
        market.do(payee, resolve)
    with market.evm.anchored():
        market.do(funded, respond)
    market.pass_time(1)
    with refused("respond: too late"):
        market.do(funded, respond)
    market.do(payee, resolve)


def test_no_answer_costs_the_stake_and_the_root(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    market.do(funded, market.calls.stake(1))
    market.post(funded, {other: 300})
    market.challenge(payee, funded, payee, 5)
    with refused("resolve: no challenge"):
        market.do(other, market.calls.resolve(funded.address, other.address))
    market.pass_time(TERMS.response_s)
    events = market.do(other, market.calls.resolve(funded.address, payee.address))
    assert [e.name for e in events] == ["Slashed", "RootCancelled"]
    assert (events[0].fields["bounty"], events[0].fields["burned"]) == (500, 501)
    assert market.answer(other, market.calls.withdraw(BURN_ADDRESS)) == 501
    assert market.balance(BURN_ADDRESS) == 501
    assert market.owed(payee) == 500 + TERMS.bond
    assert market.operator(funded).stake == 0
    assert market.pending(funded).epoch == 0
    assert market.operator(funded).next_epoch == 2
    with refused("resolve: no challenge"):
        market.do(other, market.calls.resolve(funded.address, payee.address))
    with refused("root: stake too small"):
        market.post(funded, {})


def test_a_disputed_root_does_not_become_final(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = market.post(funded, {payee: 40, other: 60})
    market.pass_time(TERMS.window_s - 1)
    market.challenge(payee, funded, payee, 40)
    market.challenge(payee, funded, other, 60)
    market.pass_time(1)
    finalize = market.calls.finalize(funded.address)
    with refused("finalize: disputed"):
        market.do(payee, finalize)
    market.do(funded, market.calls.respond(funded.address, tree.leaf(payee.address)))
    with refused("finalize: disputed"):
        market.do(payee, finalize)
    market.do(funded, market.calls.respond(funded.address, tree.leaf(other.address)))
    market.do(payee, finalize)


def test_an_old_promise_cannot_hold_the_slot_against_a_higher_one(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    """An operator's friend challenges with the payee's old promise, to keep the payee out."""
    market.post(funded, {payee: 40})
    market.challenge(other, funded, payee, 40)
    with refused("challenge: not more"):
        market.challenge(payee, funded, payee, 40)
    market.pass_time(100)
    market.challenge(payee, funded, payee, 90)
    assert market.owed(other) == TERMS.bond
    assert market.pending(funded).disputes == 1
    market.pass_time(TERMS.response_s - 100)
    with refused("resolve: too soon"):
        market.do(payee, market.calls.resolve(funded.address, payee.address))
    market.pass_time(100)
    market.do(payee, market.calls.resolve(funded.address, payee.address))
    assert market.owed(payee) == 500 + TERMS.bond


def test_an_answered_slot_opens_again_for_a_higher_promise_only(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = market.post(funded, {payee: 40})
    market.challenge(other, funded, payee, 10)
    market.do(funded, market.calls.respond(funded.address, tree.leaf(payee.address)))
    with refused("challenge: not more"):
        market.challenge(payee, funded, payee, 40)
    market.challenge(payee, funded, payee, 41)
    assert market.owed(other) == 0
    assert market.pending(funded).disputes == 1


def test_what_was_paid_needs_no_promise(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    """A root that forgets a paid leaf would pay the same money to someone else."""
    tree = market.settle(funded, {payee: 200})
    market.claim(funded, tree, payee)
    market.post(funded, {payee: 199, other: 101})
    paid = Promise(funded.address, payee.address, 0, 200)
    beyond = Promise(funded.address, payee.address, 0, 201)
    with refused("challenge: not signed"):
        market.do(other, market.calls.challenge(beyond))
    market.do(other, market.calls.challenge(paid))
    market.pass_time(TERMS.response_s)
    market.do(other, market.calls.resolve(funded.address, payee.address))
    assert market.owed(other) == 500 + TERMS.bond


def test_an_honest_root_answers_for_what_was_paid(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = market.settle(funded, {payee: 200})
    market.claim(funded, tree, payee)
    tree = market.post(funded, {payee: 200, other: 100})
    market.do(other, market.calls.challenge(Promise(funded.address, payee.address, 0, 200)))
    market.do(funded, market.calls.respond(funded.address, tree.leaf(payee.address)))
    assert market.owed(funded) == TERMS.bond


def test_bonds_of_other_challenges_come_back_when_a_root_is_cancelled(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    market.post(funded, {})
    market.challenge(payee, funded, payee, 5)
    market.challenge(other, funded, other, 5)
    reclaim = market.calls.reclaim_bond(funded.address, 1, other.address)
    with refused("reclaim: root pending"):
        market.do(other, reclaim)
    market.pass_time(TERMS.response_s)
    market.do(payee, market.calls.resolve(funded.address, payee.address))
    with refused("resolve: no challenge"):
        market.do(payee, market.calls.resolve(funded.address, other.address))
    events = market.do(payee, reclaim)
    assert (events[0].name, events[0].fields["challenger"]) == ("BondReclaimed", other.address)
    assert market.owed(other) == TERMS.bond
    with refused("reclaim: no challenge"):
        market.do(other, reclaim)
    with refused("reclaim: no challenge"):
        market.do(other, market.calls.reclaim_bond(funded.address, 1, payee.address))


def test_a_cancelled_roots_challenge_does_not_reach_the_next_root(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    market.post(funded, {})
    market.challenge(payee, funded, payee, 5)
    market.challenge(other, funded, other, 5)
    market.pass_time(TERMS.response_s)
    market.do(payee, market.calls.resolve(funded.address, payee.address))
    market.do(funded, market.calls.stake(1_000))
    tree = market.post(funded, {other: 5, payee: 5})
    with refused("respond: no challenge"):
        market.do(funded, market.calls.respond(funded.address, tree.leaf(other.address)))
    with refused("resolve: no challenge"):
        market.do(other, market.calls.resolve(funded.address, other.address))
    market.do(other, market.calls.reclaim_bond(funded.address, 1, other.address))
    assert market.pending(funded).disputes == 0


def test_each_operator_has_its_own_root(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    market.do(other, market.calls.stake(1_000))
    market.post(funded, {payee: 300})
    market.post(other, {})
    assert market.pending(other).total == 0
    market.pass_time(TERMS.window_s)
    market.do(other, market.calls.finalize(other.address))
    with refused("root: total over credit"):
        market.post(other, {payee: 1})


def test_an_answer_does_not_fit_another_operators_root(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    """The operator is in the leaf, so that two equal trees have different roots."""
    mine = SumTree(funded.address, {payee.address: 5})
    theirs = SumTree(other.address, {payee.address: 5})
    assert mine.root != theirs.root
