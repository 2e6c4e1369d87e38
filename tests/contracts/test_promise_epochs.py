"""How far ahead of the newest root a node may take a promise, and that then no theft pays.

The contract takes any epoch. The rule in docs/settlement.md is the node's own.
"""

from random import Random

import pytest

from tests.contracts.coalition import Game
from tests.contracts.market import TERMS, Market, Person, refused

GAMES = 1_000
ROOM = 500
STAKE = 2 * ROOM


def wealth(market: Market, *people: Person) -> int:
    return sum(market.balance(person.address) + market.owed(person) for person in people)


def share_with_friend_and_stop(
    market: Market, client: Person, operator: Person, node: Person, friend: Person, ahead: int
) -> int:
    """What an operator and its friend gain if the node's promise is for so many epochs ahead.

    The node's work is redeemed and given to the friend in the next root. If nobody can object,
    the same happens once more by stopping; if somebody does, the friend takes over the challenge.
    """
    before = wealth(market, operator, friend) + STAKE
    market.deposit(client, operator, 2 * ROOM)
    market.redeem(client, operator, ROOM)
    promise = market.promise(operator, node, ahead, ROOM)
    tree = market.post(operator, {friend: ROOM})
    if ahead > 1:
        with refused("challenge: for a later root"):
            market.do(node, market.calls.challenge(*promise))
    else:
        market.do(node, market.calls.challenge(*promise))
        market.challenge(friend, operator, node, ROOM + 1)
    market.pass_time(TERMS.window_s)
    if market.pending(operator).disputes:
        market.do(friend, market.calls.resolve(operator.address, node.address))
    else:
        market.do(friend, market.calls.finalize(operator.address))
        assert market.claim(operator, tree, friend) == ROOM
        market.redeem(client, operator, 2 * ROOM)
    stop_and_inherit(market, operator, friend)
    return wealth(market, operator, friend) - before


def stop_and_inherit(market: Market, operator: Person, friend: Person) -> None:
    market.pass_time(TERMS.stale_after_s)
    market.do(friend, market.calls.declare_stale(operator.address))
    promise = market.promise(operator, friend, 9, 2**128 - 1)
    market.do(friend, market.calls.file_promise(*promise))
    market.pass_time(TERMS.collection_s)
    market.do(friend, market.calls.claim_stale(operator.address, friend.address))


@pytest.mark.parametrize(("ahead", "gain"), [(1, 0), (2, STAKE // 2)])
def test_a_promise_for_the_next_root_leaves_nothing_to_gain(
    market: Market,
    client: Person,
    operator: Person,
    payee: Person,
    other: Person,
    ahead: int,
    gain: int,
) -> None:
    """One for the root after it does: the work of two rooms goes, and half a stake is burned."""
    assert share_with_friend_and_stop(market, client, operator, payee, other, ahead) == gain


@pytest.mark.parametrize("ahead", [0, 1])
def test_no_game_of_an_operator_and_its_friend_pays(ahead: int) -> None:
    gains = [Game(Random(seed), ahead=ahead).play() for seed in range(GAMES)]
    assert max(gains) == 0


def test_a_game_pays_if_promises_are_for_the_root_after_the_next_one() -> None:
    """So the games are good enough to find a way, where there is one."""
    assert max(Game(Random(seed), ahead=2).play() for seed in range(GAMES)) > 0
