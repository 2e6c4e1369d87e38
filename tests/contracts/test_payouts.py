"""Claims from a root, and the division of what a stale operator left."""

import pytest

from contracts.merkle_sum import Leaf, SumTree
from contracts.vouchers import Promise
from tests.contracts.market import BURN_ADDRESS, TERMS, Market, Person, refused


def test_a_claim_pays_what_is_earned_beyond_what_was_paid(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = market.settle(funded, {payee: 100, other: 50})
    before = market.balance(payee.address)
    events = market.do(other, market.calls.claim(funded.address, tree.leaf(payee.address)))
    assert events[0].name == "Claimed"
    assert events[0].fields == {
        "operator": funded.address,
        "payee": payee.address,
        "amount": 100,
        "cumulative": 100,
    }
    assert market.balance(payee.address) == before + 100
    assert market.claim(funded, tree, payee) == 0
    tree = market.settle(funded, {payee: 130, other: 50})
    assert market.claim(funded, tree, payee) == 30
    assert market.operator(funded).claimed == 130
    assert market.ask("paid", funded.address, payee.address) == 130


def test_a_claim_needs_a_proof_under_the_active_root(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = market.post(funded, {payee: 100, other: 50})
    leaf = tree.leaf(payee.address)
    claim = market.calls.claim(funded.address, leaf)
    with refused("claim: bad proof"):
        market.do(payee, claim)
    market.pass_time(TERMS.window_s)
    market.do(payee, market.calls.finalize(funded.address))
    cumulative, index, proof = leaf.cumulative, leaf.index, leaf.proof
    for forged in (
        Leaf(other.address, cumulative, index, proof),
        Leaf(payee.address, cumulative + 1, index, proof),
        Leaf(payee.address, cumulative, index ^ 1, proof),
        Leaf(payee.address, cumulative, index + 2, proof),
        Leaf(payee.address, cumulative, index, proof[:-1]),
        Leaf(payee.address, 151, index, proof),
    ):
        with refused("claim: bad proof"):
            market.do(payee, market.calls.claim(funded.address, forged))
    with refused("claim: bad proof"):
        market.do(payee, market.calls.claim(other.address, leaf))
    market.do(payee, claim)


def test_a_root_whose_sum_is_not_its_total_pays_nobody(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = SumTree(funded.address, {payee.address: 100, other.address: 250})
    market.do(funded, market.calls.post_root(1, tree.root, 300, bytes(32)))
    market.pass_time(TERMS.window_s)
    market.do(payee, market.calls.finalize(funded.address))
    with refused("claim: bad proof"):
        market.claim(funded, tree, payee)


def test_several_are_paid_at_once(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = market.settle(funded, {payee: 100, other: 50, funded: 7})
    leaves = [tree.leaf(p.address) for p in (payee, other, payee)]
    assert market.answer(other, market.calls.claim_many(funded.address, leaves)) == 150
    assert market.operator(funded).claimed == 150
    with refused("claim: empty"):
        market.do(other, market.calls.claim_many(funded.address, []))


def test_leaves_of_forgetful_roots_share_no_more_than_the_total(
    market: Market, funded: Person, payee: Person, other: Person, client: Person
) -> None:
    """Nobody challenged a root that dropped a paid leaf: the second payee gets what is left."""
    tree = market.settle(funded, {payee: 200})
    market.claim(funded, tree, payee)
    market.do(other, market.calls.stake(777))
    tree = market.settle(funded, {other: 300})
    assert market.claim(funded, tree, other) == 100
    assert market.operator(funded).claimed == 300
    assert market.claim(funded, tree, other) == 0
    held = market.balance(market.address)
    assert held == market.channel(client, funded).balance + 1_000 + 777


def stale(market: Market, operator: Person) -> None:
    market.pass_time(TERMS.stale_after_s)
    market.do(operator, market.calls.declare_stale(operator.address))


def file(market: Market, operator: Person, payee: Person, cumulative: int) -> int:
    promise = market.promise(operator, payee, 99, cumulative)
    return market.answer(payee, market.calls.file_promise(*promise))


def take(market: Market, operator: Person, payee: Person) -> int:
    return market.answer(payee, market.calls.claim_stale(operator.address, payee.address))


def test_an_operator_is_stale_after_its_time_and_not_before(
    market: Market, funded: Person, other: Person
) -> None:
    declare = market.calls.declare_stale(funded.address)
    market.pass_time(TERMS.stale_after_s - 1)
    with refused("stale: too soon"):
        market.do(other, declare)
    market.pass_time(1)
    events = market.do(other, declare)
    assert events[0].name == "DeclaredStale"
    assert events[0].fields == {"operator": funded.address, "reserve": 800, "burned": 500}
    assert market.answer(other, market.calls.withdraw(BURN_ADDRESS)) == 500
    assert market.balance(BURN_ADDRESS) == 500
    state = market.operator(funded)
    assert (state.stake, state.credit, state.stale_at) == (0, 0, market.evm.now_s)
    assert market.ask("estates", funded.address) == (800, 800, 0)
    with refused("stale: declared"):
        market.do(other, declare)


def test_an_odd_stake_burns_the_larger_half(market: Market, operator: Person) -> None:
    market.do(operator, market.calls.stake(1))
    stale(market, operator)
    assert market.ask("owed", BURN_ADDRESS) == 501
    assert market.ask("estates", operator.address) == (500, 500, 0)


def test_a_root_counts_from_its_posting(market: Market, funded: Person, payee: Person) -> None:
    market.post(funded, {payee: 300})
    market.pass_time(TERMS.stale_after_s)
    declare = market.calls.declare_stale(funded.address)
    with refused("stale: root pending"):
        market.do(payee, declare)
    market.do(payee, market.calls.finalize(funded.address))
    market.do(payee, declare)


def test_a_stranger_is_not_stale(market: Market, other: Person) -> None:
    with refused("stale: nothing at stake"):
        market.do(other, market.calls.declare_stale(other.address))


def test_a_stale_operator_is_closed(market: Market, funded: Person, client: Person) -> None:
    stale(market, funded)
    with refused("stake: stale"):
        market.do(funded, market.calls.stake(1))
    with refused("redeem: stale"):
        market.redeem(client, funded, 400)
    with refused("root: stale"):
        market.do(funded, market.calls.post_root(1, bytes(32), 0, bytes(32)))
    market.do(client, market.calls.request_exit(funded.address))
    market.pass_time(TERMS.exit_delay_s)
    assert market.answer(client, market.calls.exit(funded.address)) == 700


def test_promises_are_paid_in_full_if_there_is_enough(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    stale(market, funded)
    events = market.do(other, market.calls.file_promise(*market.promise(funded, payee, 1, 120)))
    assert (events[0].name, events[0].fields["weight"]) == ("Filed", 120)
    file(market, funded, other, 80)
    with refused("stale: collecting"):
        take(market, funded, payee)
    with refused("stale: collecting"):
        market.do(other, market.calls.claim_remainder(funded.address))
    market.pass_time(TERMS.collection_s - 1)
    with refused("stale: collecting"):
        take(market, funded, payee)
    market.pass_time(1)
    assert take(market, funded, payee) == 120
    with refused("stale: nothing filed"):
        take(market, funded, payee)
    remainder = market.calls.claim_remainder(funded.address)
    before = market.balance(funded.address)
    events = market.do(other, remainder)
    assert (events[0].name, events[0].fields["amount"]) == ("RemainderClaimed", 600)
    assert market.balance(funded.address) == before + 600
    with refused("stale: no remainder"):
        market.do(other, remainder)
    events = market.do(payee, market.calls.claim_stale(funded.address, other.address))
    assert events[0].name == "StaleClaimed"
    assert events[0].fields["amount"] == events[0].fields["weight"] == 80
    assert market.ask("estates", funded.address) == (200, 0, 200)


def test_promises_are_paid_pro_rata_if_there_is_not(
    market: Market, funded: Person, payee: Person, other: Person, client: Person
) -> None:
    stale(market, funded)
    for person, promised in ((payee, 700), (other, 1_000), (client, 1_300)):
        file(market, funded, person, promised)
    market.pass_time(TERMS.collection_s)
    paid = [take(market, funded, person) for person in (other, payee, client)]
    assert paid == [800 * 1_000 // 3_000, 800 * 700 // 3_000, 800 * 1_300 // 3_000]
    # Rounding leaves less than one unit for each who filed.
    assert 0 <= 800 - sum(paid) < 3
    with refused("stale: no remainder"):
        market.do(other, market.calls.claim_remainder(funded.address))


def test_the_order_of_claims_does_not_matter(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    stale(market, funded)
    file(market, funded, payee, 900)
    file(market, funded, other, 900)
    market.pass_time(TERMS.collection_s)
    with market.evm.anchored():
        first = take(market, funded, payee), take(market, funded, other)
    second = take(market, funded, other), take(market, funded, payee)
    assert first == second == (400, 400)


def test_a_higher_promise_replaces_a_lower_one(
    market: Market, funded: Person, payee: Person
) -> None:
    stale(market, funded)
    file(market, funded, payee, 50)
    with refused("file: not more"):
        file(market, funded, payee, 50)
    file(market, funded, payee, 60)
    assert market.ask("estates", funded.address) == (800, 800, 60)
    assert market.ask("weights", funded.address, payee.address) == 60


def test_filing_is_refused_with_a_reason(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    with refused("file: not stale"):
        file(market, funded, payee, 50)
    with refused("stale: not declared"):
        take(market, funded, payee)
    stale(market, funded)
    promise, _ = market.promise(funded, payee, 1, 50)
    with refused("file: not signed"):
        market.do(payee, market.calls.file_promise(promise, bytes(65)))
    with refused("file: too much"):
        file(market, funded, payee, 2**128)
    with market.evm.anchored():
        assert file(market, funded, payee, 2**128 - 1) == 2**128 - 1
    market.pass_time(TERMS.collection_s - 1)
    file(market, funded, payee, 50)
    market.pass_time(1)
    with refused("file: too late"):
        file(market, funded, other, 50)
    with refused("stale: nothing filed"):
        take(market, funded, other)


def test_a_leaf_of_the_active_root_comes_first(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    """What the root shares out is not touched by promises, and is not counted twice."""
    tree = market.settle(funded, {payee: 100, other: 50})
    stale(market, funded)
    # 300 redeemed, 150 of them rooted: 150 and half the stake are left.
    assert market.ask("estates", funded.address) == (650, 650, 0)
    assert file(market, funded, payee, 400) == 400
    assert market.claim(funded, tree, payee) == 100
    assert market.ask("estates", funded.address) == (650, 650, 300)
    file(market, funded, other, 700)
    market.claim(funded, tree, other)
    market.pass_time(TERMS.collection_s)
    assert take(market, funded, payee) == 650 * 300 // 950
    assert take(market, funded, other) == 650 * 650 // 950


def test_a_leaf_claimed_after_the_collection_is_less_what_was_paid(
    market: Market, funded: Person, payee: Person
) -> None:
    tree = market.settle(funded, {payee: 100})
    stale(market, funded)
    file(market, funded, payee, 120)
    market.pass_time(TERMS.collection_s)
    assert take(market, funded, payee) == 120
    assert market.claim(funded, tree, payee) == 0


def test_a_leaf_claimed_late_waits_for_the_share_of_the_estate(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    """Whichever is tried first, a payee gets the larger of its share and its leaf, and not both."""
    tree = market.settle(funded, {payee: 100, other: 50})
    stale(market, funded)
    file(market, funded, payee, 120)
    market.pass_time(TERMS.collection_s)
    with refused("claim: claim_stale first"):
        market.claim(funded, tree, payee)
    leaves = [tree.leaf(person.address) for person in (other, payee)]
    with refused("claim: claim_stale first"):
        market.do(other, market.calls.claim_many(funded.address, leaves))
    assert market.claim(funded, tree, other) == 50
    assert market.ask("weights", funded.address, payee.address) == 120
    assert take(market, funded, payee) == 120
    assert market.claim(funded, tree, payee) == 0


def test_a_leaf_that_is_more_than_the_share_pays_the_difference(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = market.settle(funded, {payee: 200})
    stale(market, funded)
    file(market, funded, payee, 200)
    file(market, funded, other, 1_000)
    market.pass_time(TERMS.collection_s)
    assert take(market, funded, payee) == 100 == 600 * 200 // 1_200
    assert market.claim(funded, tree, payee) == 100


def test_a_promise_that_was_paid_is_not_filed_again(
    market: Market, funded: Person, payee: Person
) -> None:
    tree = market.settle(funded, {payee: 100})
    market.claim(funded, tree, payee)
    stale(market, funded)
    with refused("file: not more"):
        file(market, funded, payee, 100)
    assert file(market, funded, payee, 101) == 1
    market.pass_time(TERMS.collection_s)
    assert take(market, funded, payee) == 1


@pytest.mark.parametrize("is_slashed_first", [False, True])
@pytest.mark.parametrize("stake_again", [0, 100, 1_000, 5_000])
def test_no_way_to_take_what_was_redeemed_pays(
    market: Market,
    client: Person,
    operator: Person,
    payee: Person,
    other: Person,
    is_slashed_first: bool,
    stake_again: int,
) -> None:
    """The worst an operator can do with a friend: redeem all it may, and give it to the friend.

    It redeems up to its room, perhaps loses a false root to the friend's own challenge, stakes
    again to redeem more, and stops; then its friend files a promise of everything there is.
    """
    wealth = market.balance(operator.address) + market.balance(other.address) + 1_000
    market.deposit(client, operator, 10_000)
    market.redeem(client, operator, 10_000)
    if is_slashed_first:
        market.post(operator, {})
        market.challenge(other, operator, other, 5)
        market.pass_time(TERMS.response_s)
        market.do(other, market.calls.resolve(operator.address, other.address))
    if stake_again:
        market.do(operator, market.calls.stake(stake_again))
        room = market.operator(operator).stake // 2 - market.operator(operator).credit
        if room > 0:
            assert market.redeem(client, operator, 10_000) == room
    stale(market, operator)
    file(market, operator, payee, 500)
    file(market, operator, other, 2**128 - 1)
    market.pass_time(TERMS.collection_s)
    take(market, operator, other)
    if market.owed(other):
        market.do(other, market.calls.withdraw(other.address))
    assert market.balance(operator.address) + market.balance(other.address) <= wealth


def test_a_forgetful_root_does_not_reach_the_estate_nor_the_float(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = market.settle(funded, {payee: 200})
    market.claim(funded, tree, payee)
    tree = market.settle(funded, {other: 250})
    assert market.claim(funded, tree, other) == 50, "50 more were redeemed, but not rooted"
    stale(market, funded)
    assert market.ask("estates", funded.address) == (550, 550, 0)
    assert market.claim(funded, tree, other) == 0


def test_claims_close_in_the_middle_of_a_window_and_open_at_its_end(
    market: Market, funded: Person, payee: Person, other: Person
) -> None:
    tree = market.settle(funded, {payee: 100, other: 50})
    market.post(funded, {payee: 100, other: 200})
    market.pass_time(TERMS.window_s // 2 - 1)
    assert market.claim(funded, tree, payee) == 100
    market.pass_time(1)
    leaf = tree.leaf(other.address)
    for claim in (
        market.calls.claim(funded.address, leaf),
        market.calls.claim_many(funded.address, [leaf]),
    ):
        with refused("claim: root pending"):
            market.do(other, claim)
    market.pass_time(TERMS.window_s // 2)
    with refused("claim: root pending"):
        market.claim(funded, tree, other)
    market.do(other, market.calls.finalize(funded.address))
    tree = SumTree(funded.address, {payee.address: 100, other.address: 200})
    assert market.claim(funded, tree, other) == 200


def test_nobody_is_paid_late_under_a_root_that_the_next_one_forgets(
    market: Market, funded: Person, payee: Person, other: Person, client: Person
) -> None:
    """The operator's friend waits with an old leaf until nobody can object to its absence any more.

    The next root would share its money out again, and whoever claims last would find nothing.
    """
    friend, node = other, payee
    old = market.settle(funded, {friend: 200})
    market.post(funded, {funded: 200, node: 100})
    market.pass_time(TERMS.window_s - 1)
    with refused("claim: root pending"):
        market.claim(funded, old, friend)
    market.pass_time(1)
    with refused("claim: root pending"):
        market.claim(funded, old, friend)
    market.do(node, market.calls.finalize(funded.address))
    new = SumTree(funded.address, {funded.address: 200, node.address: 100})
    with refused("claim: bad proof"):
        market.claim(funded, old, friend)
    assert market.claim(funded, new, funded) == 200
    assert market.claim(funded, new, node) == 100


def test_a_friend_who_is_paid_in_time_is_missed_by_a_challenger(
    market: Market, funded: Person, payee: Person, other: Person, client: Person
) -> None:
    old = market.settle(funded, {other: 200})
    market.post(funded, {funded: 200, payee: 100})
    market.pass_time(TERMS.window_s // 2 - 1)
    assert market.claim(funded, old, other) == 200
    market.pass_time(1)
    paid = Promise(funded.address, other.address, 0, 200)
    market.do(client, market.calls.challenge(paid))
    market.pass_time(TERMS.response_s)
    market.do(client, market.calls.resolve(funded.address, other.address))
    assert market.pending(funded).epoch == 0


def test_the_remainder_leaves_the_operators_own_leaf_alone(
    market: Market, funded: Person, payee: Person
) -> None:
    tree = market.settle(funded, {funded: 40, payee: 60})
    stale(market, funded)
    market.pass_time(TERMS.collection_s)
    assert market.answer(payee, market.calls.claim_remainder(funded.address)) == 700
    assert market.claim(funded, tree, funded) == 40
    assert market.claim(funded, tree, payee) == 60
    assert market.balance(market.address) == 700 + market.owed_to(BURN_ADDRESS)


def test_the_estate_never_pays_more_than_is_left_of_it(
    market: Market, funded: Person, payee: Person
) -> None:
    """All that was filed, the remainder and the leaves come out even, to the last unit."""
    tree = market.settle(funded, {payee: 100})
    stale(market, funded)
    market.claim(funded, tree, payee)
    file(market, funded, payee, 130)
    market.pass_time(TERMS.collection_s)
    assert take(market, funded, payee) == 30
    assert market.ask("estates", funded.address) == (700, 670, 30)
    assert market.answer(payee, market.calls.claim_remainder(funded.address)) == 670
    assert market.ask("estates", funded.address) == (30, 0, 30)
    state = market.operator(funded)
    assert (state.credit, state.claimed) == (100, 100)
