"""Every path of the contract in random order, against the model, with honest people among others.

`twin.py` makes each move in both and compares them; `honest.py` says how the honest behave and
what they must not lose. Here are the moves that hypothesis draws, and how they are made likely to
matter: nearly all purely random ones are refused.
"""

import os
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.contracts.evm import Evm
from tests.contracts.honest import HonestPeople
from tests.contracts.market import TERMS, Market
from tests.contracts.model import BURN
from tests.contracts.twin import CLIENTS, EVERYONE, OPERATORS, PAYEES, Twin

# Wallets are compared at the end, and once in so many moves.
WALLET_CHECK_MOVES = 10

CHANNEL_MOVES = ("exit", "request_exit")
OPERATOR_MOVES = ("request_unstake", "unstake", "finalize", "declare_stale", "claim_remainder")
PAYEE_MOVES = ("respond", "resolve", "claim", "claim_stale")
ALL_MOVES = (
    *("deposit", "redeem", "stake", "post_root", "challenge", "reclaim_bond", "withdraw"),
    *("file_promise", *CHANNEL_MOVES, *OPERATOR_MOVES, *PAYEE_MOVES),
)

clients = st.sampled_from(CLIENTS)
operators = st.sampled_from(OPERATORS)
payees = st.sampled_from(PAYEES)
everyone = st.sampled_from(EVERYONE)
amounts = st.one_of(st.integers(0, 40), st.integers(0, 900), st.sampled_from([5_000, 2**100]))
small = st.integers(1, 400)
shares = st.integers(0, 100)


class SettlementMachine(RuleBasedStateMachine):
    market: ClassVar[Market]

    def __init__(self) -> None:
        super().__init__()
        self._anchor = self.market.evm.anchored()
        self._anchor.__enter__()
        self.twin = Twin(self.market)
        self.model = self.twin.model
        self.people = HonestPeople(self.twin)
        self._moves = 0

    @initialize()
    def open(self) -> None:
        for operator in OPERATORS:
            self.twin.stake(operator, 600)
            for client in CLIENTS:
                self.twin.deposit(client, operator, 2_000)
        for client in CLIENTS:
            self.sign_and_redeem("crook", client, 100, 100)
            self.people.serve(client, 100)
        self.people.collect()

    def teardown(self) -> None:
        try:
            self.twin.check_wallets()
        finally:
            self._anchor.__exit__(None, None, None)

    # Moves that the contract would take now.

    @rule(data=st.data())
    def make_another_move_that_is_open(self, data: st.DataObject) -> None:
        """Listed twice, so that it is drawn more often."""
        self.make_a_move_that_is_open(data)

    @rule(data=st.data())
    def make_a_move_that_is_open(self, data: st.DataObject) -> None:
        """One of those that only need the right moment."""
        moves: list[tuple[str, tuple[str | int, ...]]] = [
            *((name, (c, o)) for name in CHANNEL_MOVES for c in CLIENTS for o in OPERATORS),
            *((name, (o,)) for name in OPERATOR_MOVES for o in OPERATORS),
            *((name, (o, p)) for name in PAYEE_MOVES for o in OPERATORS for p in PAYEES),
            *(("withdraw", (who,)) for who in (*EVERYONE, BURN)),
            *(
                ("reclaim_bond", (o, e, p))
                for o in OPERATORS
                for e, root in self.model.operators[o].cancelled.items()
                for p in root.slots
            ),
        ]
        open_moves = [move for move in moves if self.twin.is_open(*move)]
        if open_moves:
            self.make(*data.draw(st.sampled_from(open_moves)))

    def make(self, name: str, args: tuple[str | int, ...]) -> None:
        if (name, *args) == ("unstake", "honest"):
            self.people.unstake()
        else:
            getattr(self.twin, name)(*args)

    @rule(data=st.data(), early=st.sampled_from([0, 0, 1]))
    def wait_for_something(self, data: st.DataObject, early: int) -> None:
        """Until a moment at which something opens or closes, or just before it."""
        moments = {escrow.exit_at for escrow in self.model.escrows.values()}
        for book in self.model.operators.values():
            moments |= {book.fresh_at + TERMS.stale_after_s, book.stale_at + TERMS.collection_s}
            if book.pending is not None:
                posted_at = book.pending.posted_at
                moments |= {deadline for _, _, deadline in book.pending.slots.values()}
                moments |= {posted_at + TERMS.window_s // 2, posted_at + TERMS.window_s}
        ahead = sorted(moment - self.model.now for moment in moments if moment > self.model.now)
        if ahead:
            self.people.wait(max(1, data.draw(st.sampled_from(ahead)) - early))

    # Stories: several moves that belong together.

    @rule(share=shares, is_ended=st.booleans())
    def cheat(self, share: int, is_ended: bool) -> None:
        """The crook promises all it has twice, posts a root that forgets it, and is challenged."""
        self.end_pending_root("crook")
        self.twin.stake("crook", TERMS.stake_min)
        book = self.model.operators["crook"]
        amount = 1 + book.credit * share // 100
        for payee in ("node", "mate"):
            self.twin.promised["crook", payee].append((book.next_epoch, amount))
        self.twin.post("crook", {"crook": book.credit, "mate": 0})
        for who, payee in (("shill", "mate"), ("client", "node")):
            self.twin.challenge(who, "crook", payee, book.next_epoch - 1, amount)
        if is_ended:
            self.end_pending_root("crook")
            for payee in ("node", "mate"):
                self.twin.reclaim_bond("crook", max(1, book.next_epoch - 1), payee)

    @rule(wait_s=st.sampled_from([0, 499, 500, 1_000]))
    def share_twice(self, wait_s: int) -> None:
        """All to the mate, then all to the crook, with the mate's old leaf claimed in between."""
        self.end_pending_root("crook")
        self.twin.stake("crook", TERMS.stake_min)
        self.post_all_to("mate")
        self.end_pending_root("crook")
        self.post_all_to("crook")
        self.people.wait(wait_s)
        self.twin.claim("crook", "mate")
        self.end_pending_root("crook")
        self.twin.claim("crook", "crook")

    def post_all_to(self, payee: str) -> None:
        self.twin.post("crook", {payee: self.model.operators["crook"].credit})

    @rule(client=clients)
    def surprise_the_honest(self, client: str) -> None:
        """A client leaves when the operator has no room, and its pending root makes none."""
        self.twin.deposit(client, "honest", 1_000)
        for _ in range(2):
            self.end_pending_root("honest")
            self.people.post_root()
        for _ in range(2):
            self.people.serve(client, self.model.operators["honest"].stake // 2)
            self.people.collect()
        self.twin.request_exit(client, "honest")
        self.people.wait(TERMS.exit_delay_s)
        self.twin.exit(client, "honest")

    @rule(operator=operators)
    def leave(self, operator: str) -> None:
        """An operator goes the whole way out."""
        self.people.collect()
        self.end_pending_root(operator)
        self.twin.request_unstake(operator)
        for _ in range(2):
            self.people.post_root()
            self.post_all_to("mate")
            self.end_pending_root(operator)
        self.make("unstake", (operator,))

    @rule(payee=st.sampled_from(("node", "mate", "honest")))
    def doubt_the_honest(self, payee: str) -> None:
        """A challenge of an honest root, which has an answer."""
        self.people.promise(50)
        self.end_pending_root("honest")
        self.people.post_root()
        amount = self.people.leaves().get(payee, 0)
        self.twin.challenge("shill", "honest", payee, 0, amount)

    @rule(amount=st.one_of(st.integers(1, 150), st.integers(1, 2_000)), is_divided=st.booleans())
    def crook_stops(self, amount: int, is_divided: bool) -> None:
        """No more roots: whatever is pending ends, and its estate is opened or even divided."""
        self.end_pending_root("crook")
        late_at = self.model.operators["crook"].fresh_at + TERMS.stale_after_s
        self.people.wait(max(1, late_at - self.model.now))
        self.twin.declare_stale("crook")
        self.twin.file_promise("crook", "mate", amount)
        if is_divided:
            self.people.wait(TERMS.collection_s)
            self.twin.claim_remainder("crook")
            self.twin.claim_stale("crook", "mate")

    def end_pending_root(self, operator: str) -> None:
        """Wait until it is final or cancelled, if there is one."""
        if self.model.operators[operator].pending is None:
            return
        self.people.wait(TERMS.window_s + TERMS.response_s)
        for payee in PAYEES:
            self.twin.resolve(operator, payee)
        self.twin.finalize(operator)

    # Single moves at any time, mostly refused.

    @rule(client=clients, operator=operators, amount=amounts, is_paused=st.booleans())
    def deposit(self, client: str, operator: str, amount: int, is_paused: bool) -> None:
        amount = min(amount, 5_000)
        if is_paused:
            self.twin.set_paused(True)
            self.twin.deposit(client, operator, amount)
            self.twin.set_paused(False)
        self.twin.deposit(client, operator, amount)

    @rule(client=clients, amount=small)
    def serve(self, client: str, amount: int) -> None:
        self.people.serve(client, amount)

    @rule()
    def collect(self) -> None:
        self.people.collect()

    @rule(operator=st.just("crook"), client=clients, more=amounts, percent=st.integers(0, 110))
    def sign_and_redeem(self, operator: str, client: str, more: int, percent: int) -> None:
        """The client signs for `more` than before; the crook charges so much of it, or too much."""
        self.twin.ceilings[client, operator] += min(more, 1_000)
        charged = self.twin.ceilings[client, operator] * percent // 100
        self.twin.redeem(operator, [(client, charged)])

    @rule(operator=operators, amount=small)
    def stake(self, operator: str, amount: int) -> None:
        self.twin.stake(operator, amount)

    @rule(leaves=st.dictionaries(payees, st.integers(0, 500)), lie=st.sampled_from([0, 0, 0, 1]))
    def post_any_root(self, leaves: dict[str, int], lie: int) -> None:
        self.twin.post("crook", leaves, lie)

    @rule(share=shares)
    def post_fitting_root(self, share: int) -> None:
        """A root that the contract takes: all the credit, divided somehow."""
        credit = self.model.operators["crook"].credit
        first = credit * share // 100
        self.twin.post("crook", {"node": first, "mate": credit - first})

    @rule()
    def post_honest_root(self) -> None:
        self.people.post_root()

    @rule(payee=payees, amount=small, ahead=st.integers(0, 2))
    def promise(self, payee: str, amount: int, ahead: int) -> None:
        """The crook promises whatever it likes; the node takes only what binds soon."""
        epoch = self.model.operators["crook"].next_epoch + ahead
        self.twin.promised["crook", payee].append((epoch, amount))

    @rule(share=shares)
    def promise_honestly(self, share: int) -> None:
        self.people.promise(share)

    @rule(who=everyone, operator=operators, payee=payees, index=st.integers(0, 50))
    def challenge(self, who: str, operator: str, payee: str, index: int) -> None:
        known = self.twin.promised[operator, payee]
        if known:
            self.twin.challenge(who, operator, payee, *known[index % len(known)])

    @rule(who=everyone, operator=operators, payee=payees)
    def challenge_what_was_paid(self, who: str, operator: str, payee: str) -> None:
        amount = self.model.operators[operator].paid[payee]
        if amount:
            self.twin.challenge(who, operator, payee, 0, amount)

    @rule(name=st.sampled_from(CHANNEL_MOVES), client=clients, operator=operators)
    def move_a_channel(self, name: str, client: str, operator: str) -> None:
        self.make(name, (client, operator))

    @rule(name=st.sampled_from(OPERATOR_MOVES), operator=operators)
    def move_an_operator(self, name: str, operator: str) -> None:
        self.make(name, (operator,))

    @rule(name=st.sampled_from(PAYEE_MOVES), operator=operators, payee=payees)
    def move_a_payee(self, name: str, operator: str, payee: str) -> None:
        self.make(name, (operator, payee))

    @rule(operator=operators, payee=payees, amount=amounts)
    def file_promise(self, operator: str, payee: str, amount: int) -> None:
        if operator == "honest":
            amount = self.people.leaves().get(payee, 0)
        self.twin.file_promise(operator, payee, amount)

    @rule(operator=operators, epoch=st.integers(1, 6), payee=payees)
    def reclaim_bond(self, operator: str, epoch: int, payee: str) -> None:
        self.twin.reclaim_bond(operator, epoch, payee)

    @rule(who=everyone)
    def withdraw(self, who: str) -> None:
        self.twin.withdraw(who)

    @invariant()
    def everything_holds(self) -> None:
        self.twin.check()
        self.people.check()
        self._moves += 1
        if self._moves % WALLET_CHECK_MOVES == 0:
            self.twin.check_wallets()


def machine_for(market: Market) -> type[SettlementMachine]:
    return type("Machine", (SettlementMachine,), {"market": market})


def run_machine(*, examples: int, steps: int, is_new: bool) -> None:
    run_state_machine_as_test(
        machine_for(Market(Evm())),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            # The same moves at every run, or others than ever before.
            derandomize=not is_new,
            suppress_health_check=list(HealthCheck),
            # Shrinking replays the contract thousands of times: ask for it when something failed.
            phases=[p for p in Phase if p is not Phase.shrink or "CAPACLOUD_SHRINK" in os.environ],
        ),
    )


def test_the_contract_does_what_the_model_does() -> None:
    run_machine(examples=10, steps=40, is_new=False)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", range(10))
def test_the_contract_does_what_the_model_does_for_long(number: int) -> None:
    run_machine(examples=25, steps=80, is_new=True)


def test_a_tour_of_the_machine_makes_every_move() -> None:
    """A machine whose moves are all refused would prove nothing: each is seen to happen once."""
    market = Market(Evm())
    machine = machine_for(market)()
    machine.open()
    machine.promise_honestly(80)
    machine.doubt_the_honest("node")
    machine.twin.respond("honest", "node")
    machine.twin.withdraw("honest")
    machine.end_pending_root("honest")
    machine.twin.claim("honest", "node")
    for wait_s in (1_000, 500, 0):
        machine.share_twice(wait_s)
        machine.everything_holds()
    machine.cheat(100, True)
    machine.people.serve("client", 200)
    machine.twin.request_exit("client", "honest")
    machine.leave("honest")
    machine.people.wait(TERMS.exit_delay_s)
    machine.twin.exit("client", "honest")
    machine.twin.stake("crook", 1_000)
    machine.crook_stops(20, True)
    machine.everything_holds()
    machine.teardown()
    assert not [
        name for name in ALL_MOVES if market.artifact.selector(name) not in machine.twin.made
    ]
