"""Every path of the contract in random order, against the model, with honest people among others.

`honest` is an operator that only posts what it promised and answers every challenge; `crook` does
anything. `node` watches: it challenges whatever forgets its promises. `client` signs what it
consumes. Whatever the others do, these lose no more than docs/settlement.md says.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
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

from contracts.chain import Call
from contracts.errors import RevertedError
from contracts.merkle_sum import Leaf, SumTree
from contracts.units import Address
from tests.contracts.evm import Evm
from tests.contracts.market import BURN_ADDRESS, TERMS, WEALTH, Market
from tests.contracts.model import Model, Refusal, Root

CLIENTS = ("client", "shill")
OPERATORS = ("honest", "crook")
PAYEES = ("node", "mate", "honest", "crook")
EVERYONE = ("client", "shill", "honest", "crook", "node", "mate")
OPERATOR_MOVES = (
    "request_unstake",
    "unstake",
    "finalize",
    "declare_stale",
    "claim_remainder",
)
PAYEE_MOVES = ("respond", "resolve", "claim", "claim_stale")
# Before the honest sleep this long, they look at the chain; it must be less than `response_s`.
LOOK_EVERY_S = 300

clients = st.sampled_from(CLIENTS)
operators = st.sampled_from(OPERATORS)
payees = st.sampled_from(PAYEES)
everyone = st.sampled_from(EVERYONE)
amounts = st.one_of(st.integers(0, 40), st.integers(0, 900), st.sampled_from([10**6, 2**100]))
small = st.integers(1, 400)
waits = st.sampled_from([1, 299, 399, 400, 700, 999, 1_000, 2_000, 5_000])


class SettlementMachine(RuleBasedStateMachine):
    market: Market
    # Selectors of the calls that the contract took, over all examples of a run.
    made: ClassVar[set[bytes]] = set()

    @initialize()
    def open(self) -> None:
        self._anchor = self.market.evm.anchored()
        self._anchor.__enter__()
        self.people = {name: self.market.person(name) for name in EVERYONE}
        self.model = Model(self.market.evm.now_s, **asdict(TERMS))
        self.ceilings: dict[tuple[str, str], int] = defaultdict(int)
        # What each operator has signed for whom, and which of that binds from which root on.
        self.promised: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        self.node_roots: list[tuple[int, int]] = []
        self.stakes_lost = self.fee = 0
        for operator in OPERATORS:
            self.stake(operator, 600)
            for client in CLIENTS:
                self.deposit(client, operator, 2_000)
                self.redeem(operator, client, 100, 100)

    def teardown(self) -> None:
        if hasattr(self, "_anchor"):
            self._anchor.__exit__(None, None, None)

    # Moves that the contract would take now: random ones alone are nearly all refused.

    @rule(data=st.data())
    def make_another_move_that_is_open(self, data: st.DataObject) -> None:
        """Listed twice, so that it is drawn more often."""
        self.make_a_move_that_is_open(data)

    @rule(data=st.data())
    def make_a_move_that_is_open(self, data: st.DataObject) -> None:
        """One of those that only need the right moment."""
        moves: list[tuple[str, tuple[str | int, ...]]] = [
            *(
                (name, (c, o))
                for name in ("exit", "request_exit")
                for c in CLIENTS
                for o in OPERATORS
            ),
            *((name, (o,)) for name in OPERATOR_MOVES for o in OPERATORS),
            *((name, (o, p)) for name in PAYEE_MOVES for o in OPERATORS for p in PAYEES),
            *(("withdraw", (who,)) for who in EVERYONE),
            *(
                ("reclaim_bond", (o, e, p))
                for o in OPERATORS
                for e, root in self.model.operators[o].cancelled.items()
                for p in root.slots
            ),
        ]
        open_moves = [move for move in moves if self.is_open(*move)]
        if open_moves:
            name, args = data.draw(st.sampled_from(open_moves))
            getattr(self, name)(*args)

    @rule(data=st.data(), early=st.sampled_from([0, 0, 1]))
    def wait_for_something(self, data: st.DataObject, early: int) -> None:
        """Until a moment at which something opens or closes, or just before it."""
        moments = {escrow.exit_at for escrow in self.model.escrows.values()}
        for book in self.model.operators.values():
            moments |= {book.fresh_at + TERMS.stale_after_s, book.stale_at + TERMS.collection_s}
            if book.pending is not None:
                moments |= {deadline for _, _, deadline in book.pending.slots.values()}
                moments.add(book.pending.posted_at + TERMS.window_s)
        ahead = sorted(moment - self.model.now for moment in moments if moment > self.model.now)
        if ahead:
            self.wait(max(1, data.draw(st.sampled_from(ahead)) - early))

    @rule(share=st.integers(0, 100), is_ended=st.booleans())
    def cheat(self, share: int, is_ended: bool) -> None:
        """The crook promises all it has twice, posts a root that forgets it, and is challenged."""
        self.end_pending_root("crook")
        self.stake("crook", TERMS.stake_min)
        book = self.model.operators["crook"]
        amount = 1 + book.credit * share // 100
        for payee in ("node", "mate"):
            self.promised["crook", payee].append((book.next_epoch, amount))
        self.post("crook", {"crook": book.credit, "mate": 0}, 0)
        for who, payee in (("shill", "mate"), ("client", "node")):
            self.do_challenge(who, "crook", payee, book.next_epoch - 1, amount)
        if is_ended:
            self.end_pending_root("crook")
            for payee in ("node", "mate"):
                self.reclaim_bond("crook", max(1, book.next_epoch - 1), payee)

    @rule(operator=operators)
    def leave(self, operator: str) -> None:
        """An operator goes the whole way out."""
        self.end_pending_root(operator)
        self.request_unstake(operator)
        for _ in range(2):
            self.post_honest_root()
            self.post("crook", {"mate": self.model.operators["crook"].credit}, 0)
            self.end_pending_root(operator)
        self.unstake(operator)

    @rule(payee=st.sampled_from(("node", "mate", "honest")))
    def doubt_the_honest(self, payee: str) -> None:
        """A challenge of an honest root, which has an answer."""
        self.promise_honestly(50)
        self.end_pending_root("honest")
        self.post_honest_root()
        amount = self.honest_leaves().get(payee, 0)
        self.do_challenge("shill", "honest", payee, 0, amount)

    @rule(amount=st.one_of(st.integers(1, 150), st.integers(1, 2_000)), is_divided=st.booleans())
    def crook_stops(self, amount: int, is_divided: bool) -> None:
        """No more roots: whatever is pending ends, and its estate is opened or even divided."""
        self.end_pending_root("crook")
        self.wait(max(1, self.model.operators["crook"].fresh_at + 5_000 - self.model.now))
        self.declare_stale("crook")
        for payee in ("node", "mate"):
            self.file_promise("crook", payee, amount)
        if is_divided:
            self.wait(TERMS.collection_s)
            self.claim_remainder("crook")
            for payee in ("mate", "node"):
                self.claim_stale("crook", payee)

    # Moves that anyone may make at any time.

    @rule(client=clients, operator=operators, amount=amounts)
    def deposit(self, client: str, operator: str, amount: int) -> None:
        amount = min(amount, 5_000)
        call = self.market.calls.deposit(self.address(client), self.address(operator), amount)
        self.both(client, call, lambda: self.model.deposit(client, operator, amount))

    @rule(operator=operators, client=clients, more=amounts, charge=st.integers(0, 110))
    def redeem(self, operator: str, client: str, more: int, charge: int) -> None:
        """The client signs for `more` than before; the operator charges that many hundredths."""
        person, market = self.people[client], self.market
        ceiling = self.ceilings[client, operator] + min(more, 1_000)
        charged = ceiling * charge // 100
        self.ceilings[client, operator] = ceiling
        item = market.voucher(person, self.people[operator], ceiling, charged)
        self.both(
            operator,
            market.calls.redeem([item]),
            lambda: self.model.redeem(operator, [(client, ceiling, charged)]),
        )

    @rule(operator=operators)
    def redeem_everyone(self, operator: str) -> None:
        tops = {client: self.ceilings[client, operator] for client in CLIENTS}
        items = [
            self.market.voucher(self.people[client], self.people[operator], top)
            for client, top in tops.items()
        ]
        charges = [(client, top, top) for client, top in tops.items()]
        call = self.market.calls.redeem(items)
        self.both(operator, call, lambda: self.model.redeem(operator, charges))

    @rule(client=clients, operator=operators)
    def request_exit(self, client: str, operator: str) -> None:
        call = self.market.calls.request_exit(self.address(operator))
        self.both(client, call, lambda: self.model.request_exit(client, operator))

    @rule(client=clients, operator=operators)
    def exit(self, client: str, operator: str) -> None:
        call = self.market.calls.exit(self.address(operator))
        self.both(client, call, lambda: self.model.exit(client, operator))

    @rule(operator=operators, amount=small)
    def stake(self, operator: str, amount: int) -> None:
        # An honest operator does not stop half way between nothing and the smallest stake.
        amount += TERMS.stake_min if operator == "honest" else 0
        call = self.market.calls.stake(amount)
        self.both(operator, call, lambda: self.model.stake(operator, amount))

    @rule(operator=operators)
    def request_unstake(self, operator: str) -> None:
        call = self.market.calls.request_unstake()
        self.both(operator, call, lambda: self.model.request_unstake(operator))

    @rule(operator=operators)
    def unstake(self, operator: str) -> None:
        call = self.market.calls.unstake()
        self.both(operator, call, lambda: self.model.unstake(operator))

    @rule(leaves=st.dictionaries(payees, st.integers(0, 500)), lie=st.sampled_from([0, 0, 0, 1]))
    def post_any_root(self, leaves: dict[str, int], lie: int) -> None:
        self.post("crook", leaves, lie)

    @rule(share=st.integers(0, 100))
    def post_fitting_root(self, share: int) -> None:
        """A root that the contract takes: all the credit, divided somehow."""
        credit = self.model.operators["crook"].credit
        first = credit * share // 100
        self.post("crook", {"node": first, "mate": credit - first}, 0)

    @rule()
    def post_honest_root(self) -> None:
        book, leaves = self.model.operators["honest"], self.honest_leaves()
        leaves["honest"] += book.credit - sum(leaves.values())
        if self.post("honest", leaves, 0):
            self.fee = leaves["honest"]

    @rule(payee=payees, amount=small, ahead=st.integers(0, 2))
    def promise(self, payee: str, amount: int, ahead: int) -> None:
        """The crook promises whatever it likes; the node takes only what binds soon."""
        epoch = self.model.operators["crook"].next_epoch + ahead
        self.promised["crook", payee].append((epoch, amount))

    @rule(share=st.integers(0, 100))
    def promise_honestly(self, share: int) -> None:
        """Out of what was redeemed, and never less than before."""
        book = self.model.operators["honest"]
        for payee in ("node", "mate"):
            leaves = self.honest_leaves()
            known, rest = leaves[payee], book.credit - sum(leaves.values())
            more = rest * share // 200
            self.promised["honest", payee].append((book.next_epoch, known + more))

    @rule(who=everyone, operator=operators, payee=payees, index=st.integers(0, 50))
    def challenge(self, who: str, operator: str, payee: str, index: int) -> None:
        known = self.promised[operator, payee]
        if known:
            epoch, amount = known[index % len(known)]
            self.do_challenge(who, operator, payee, epoch, amount)

    @rule(who=everyone, operator=operators, payee=payees)
    def challenge_what_was_paid(self, who: str, operator: str, payee: str) -> None:
        amount = self.model.operators[operator].paid[payee]
        if amount:
            self.do_challenge(who, operator, payee, 0, amount)

    @rule(operator=operators, payee=payees)
    def respond(self, operator: str, payee: str) -> None:
        root = self.model.operators[operator].pending or Root()
        call = self.market.calls.respond(self.address(operator), self.leaf(operator, root, payee))
        self.both("mate", call, lambda: self.model.respond(operator, payee))

    @rule(operator=operators, payee=payees)
    def resolve(self, operator: str, payee: str) -> None:
        before = self.model.operators[operator].stake
        call = self.market.calls.resolve(self.address(operator), self.address(payee))
        if self.both("mate", call, lambda: self.model.resolve(operator, payee)):
            self.stakes_lost += before if operator == "honest" else 0

    @rule(operator=operators, epoch=st.integers(1, 6), payee=payees)
    def reclaim_bond(self, operator: str, epoch: int, payee: str) -> None:
        call = self.market.calls.reclaim_bond(self.address(operator), epoch, self.address(payee))
        self.both("mate", call, lambda: self.model.reclaim_bond(operator, epoch, payee))

    @rule(operator=operators)
    def finalize(self, operator: str) -> None:
        root = self.model.operators[operator].pending
        call = self.market.calls.finalize(self.address(operator))
        done = self.both("mate", call, lambda: self.model.finalize(operator))
        if done and root is not None and operator == "crook":
            self.node_roots.append((self.binding(root.epoch)[1], root.leaves.get("node", 0)))

    @rule(operator=operators, payee=payees)
    def claim(self, operator: str, payee: str) -> None:
        root = self.model.operators[operator].active
        call = self.market.calls.claim(self.address(operator), self.leaf(operator, root, payee))
        self.both("mate", call, lambda: self.model.claim(operator, payee))

    @rule(who=everyone)
    def withdraw(self, who: str) -> None:
        self.both(who, self.market.calls.withdraw(), lambda: self.model.withdraw(who))

    @rule(operator=operators)
    def declare_stale(self, operator: str) -> None:
        before = self.model.operators[operator].stake
        call = self.market.calls.declare_stale(self.address(operator))
        if self.both("mate", call, lambda: self.model.declare_stale(operator)):
            self.stakes_lost += before if operator == "honest" else 0

    @rule(operator=operators, payee=payees, amount=amounts)
    def file_promise(self, operator: str, payee: str, amount: int) -> None:
        if operator == "honest":
            amount = self.honest_leaves().get(payee, 0)
        promise = self.market.promise(self.people[operator], self.people[payee], 9, amount)
        call = self.market.calls.file_promise(*promise)
        self.both("mate", call, lambda: self.model.file_promise(operator, payee, amount))

    @rule(operator=operators, payee=payees)
    def claim_stale(self, operator: str, payee: str) -> None:
        call = self.market.calls.claim_stale(self.address(operator), self.address(payee))
        self.both("mate", call, lambda: self.model.claim_stale(operator, payee))

    @rule(operator=operators)
    def claim_remainder(self, operator: str) -> None:
        call = self.market.calls.claim_remainder(self.address(operator))
        self.both("mate", call, lambda: self.model.claim_remainder(operator))

    @rule(seconds=waits)
    def wait(self, seconds: int) -> None:
        while seconds > 0:
            self.honest_operator_acts()
            self.node_acts()
            step = min(seconds, LOOK_EVERY_S)
            self.market.pass_time(step)
            self.model.now += step
            seconds -= step
        self.honest_operator_acts()
        self.node_acts()

    # What must hold after every move.

    @invariant()
    def tokens_add_up(self) -> None:
        if not hasattr(self, "model"):
            return
        market, model = self.market, self.model
        assert market.balance(market.address) == model.held()
        assert market.balance(BURN_ADDRESS) == model.burned
        for name, person in self.people.items():
            assert market.balance(person.address) == WEALTH + model.wallets[name], name
            assert market.owed(person) == model.owed[name], name

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        for name in OPERATORS:
            book, state = self.model.operators[name], self.market.operator(self.people[name])
            assert asdict(state) == {field: getattr(book, field) for field in asdict(state)}
            assert book.claimed <= book.credit
            assert book.active.total <= book.credit
            assert self.market.active(self.people[name]).total == book.active.total
            pending = self.market.pending(self.people[name])
            assert pending.epoch == (book.pending.epoch if book.pending else 0)
            assert pending.disputes == (book.pending.disputes() if book.pending else 0)

    @invariant()
    def clients_pay_no_more_than_they_signed(self) -> None:
        if not hasattr(self, "model"):
            return
        for (client, operator), escrow in self.model.escrows.items():
            channel = self.market.channel(self.people[client], self.people[operator])
            assert (channel.balance, channel.redeemed) == (escrow.balance, escrow.redeemed)
            assert channel.redeemed <= self.ceilings[client, operator]

    @invariant()
    def honest_people_lose_nothing(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.stakes_lost == 0
        # No root became final that held less for the node than a promise which bound it.
        assert all(leaf >= promised for promised, leaf in self.node_roots)
        book = self.model.operators["honest"]
        assert sum(self.honest_leaves().values()) <= book.credit

    def end_pending_root(self, operator: str) -> None:
        """Wait until it is final or cancelled, if there is one."""
        if self.model.operators[operator].pending is None:
            return
        self.wait(TERMS.window_s + TERMS.response_s)
        for payee in PAYEES:
            self.resolve(operator, payee)
        self.finalize(operator)

    # How the honest behave.

    def honest_leaves(self) -> dict[str, int]:
        """The highest promise to each, and the fee that was posted so far, which never shrinks."""
        leaves = {"honest": self.fee}
        for name in ("node", "mate"):
            leaves[name] = max((a for _, a in self.promised["honest", name]), default=0)
        return leaves

    def honest_operator_acts(self) -> None:
        book = self.model.operators["honest"]
        if book.pending is not None:
            for payee, (holder, _, _) in list(book.pending.slots.items()):
                if holder:
                    self.respond("honest", payee)
            if self.model.now >= book.pending.posted_at + TERMS.window_s:
                self.finalize("honest")
        due = self.model.now >= book.fresh_at + TERMS.stale_after_s // 2
        if book.pending is None and book.stake >= TERMS.stake_min and due:
            self.post_honest_root()

    def node_acts(self) -> None:
        """Challenge the crook's root if it holds less than what binds it, once."""
        root = self.model.operators["crook"].pending
        if root is None:
            return
        epoch, amount = self.binding(root.epoch)
        shown = root.leaves.get("node", 0)
        holder, asked, deadline = root.slots.get("node", ("", 0, 0))
        if holder and self.model.now >= deadline:
            self.resolve("crook", "node")
        elif amount > max(shown, asked):
            self.do_challenge("node", "crook", "node", epoch, amount)

    def binding(self, epoch: int) -> tuple[int, int]:
        """The node's best promise of the crook's for this root: its epoch, and how much."""
        held = [(e, a) for e, a in self.promised["crook", "node"] if e <= epoch]
        return max(held, key=lambda promise: promise[1], default=(0, 0))

    def is_open(self, name: str, args: tuple[str | int, ...]) -> bool:
        """Whether the model would take this move now."""
        try:
            getattr(deepcopy(self.model), name)(*args)
        except Refusal:
            return False
        return True

    # How a move is made twice.

    def both(self, who: str, call: Call, expect: Callable[[], object]) -> bool:
        """Make the move in the model and in the contract: same outcome, reason and answer."""
        answer, reason, refused = None, None, None
        try:
            answer = expect()
        except Refusal as refusal:
            reason = str(refusal)
        number = 0
        try:
            number = self.market.answer(self.people[who], call)
        except RevertedError as error:
            refused = error.reason
        assert refused == reason
        if refused is not None:
            return False
        self.made.add(call.data[:4])
        if isinstance(answer, int):
            assert number == answer
        return True

    def post(self, operator: str, leaves: dict[str, int], lie: int) -> bool:
        tree = self.tree(operator, leaves)
        epoch = max(1, self.model.operators[operator].next_epoch)
        call = self.market.calls.post_root(epoch, tree.root, tree.total + lie, bytes(32))
        total = tree.total + lie
        return self.both(operator, call, lambda: self.model.post_root(operator, leaves, total))

    def do_challenge(self, who: str, operator: str, payee: str, epoch: int, amount: int) -> None:
        promise, signature = self.market.promise(
            self.people[operator], self.people[payee], epoch, amount
        )
        paid = self.model.operators[operator].paid[payee]
        call = self.market.calls.challenge(promise, b"" if amount <= paid else signature)
        self.both(who, call, lambda: self.model.challenge(who, operator, payee, epoch, amount))

    def leaf(self, operator: str, root: Root, payee: str) -> Leaf:
        if payee not in root.leaves:
            return Leaf(self.address(payee), 0, 1, ())
        return self.tree(operator, root.leaves).leaf(self.address(payee))

    def tree(self, operator: str, leaves: dict[str, int]) -> SumTree:
        earned = {self.address(name): amount for name, amount in leaves.items()}
        return SumTree(self.address(operator), earned)

    def address(self, name: str) -> Address:
        return self.people[name].address


def run(market: Market, *, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        type("Machine", (SettlementMachine,), {"market": market, "made": set()}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize="CAPACLOUD_RANDOM" not in os.environ,
            suppress_health_check=list(HealthCheck),
            # Shrinking replays the contract thousands of times: ask for it when there is a failure.
            phases=[p for p in Phase if p is not Phase.shrink or "CAPACLOUD_SHRINK" in os.environ],
        ),
    )


def test_the_contract_does_what_the_model_does() -> None:
    run(Market(Evm()), examples=12, steps=40)


def test_a_tour_of_the_machine_makes_every_move() -> None:
    """A machine whose moves are all refused would prove nothing: each is seen to happen once."""
    market = Market(Evm())
    machine = type("Machine", (SettlementMachine,), {"market": market, "made": set()})()
    machine.open()
    machine.promise_honestly(80)
    machine.doubt_the_honest("node")
    machine.respond("honest", "node")
    machine.withdraw("honest")
    machine.end_pending_root("honest")
    machine.claim("honest", "node")
    machine.cheat(100, True)
    machine.request_exit("client", "honest")
    machine.leave("honest")
    machine.wait(TERMS.exit_delay_s)
    machine.exit("client", "honest")
    machine.crook_stops(20, True)
    for check in ("tokens_add_up", "books_agree", "honest_people_lose_nothing"):
        getattr(machine, check)()
    machine.teardown()
    names = "deposit redeem request_exit exit stake request_unstake unstake post_root challenge"
    names += " respond resolve reclaim_bond finalize claim withdraw declare_stale file_promise"
    names += " claim_stale claim_remainder"
    assert not [
        name for name in names.split() if market.artifact.selector(name) not in machine.made
    ]


@pytest.mark.slow
def test_the_contract_does_what_the_model_does_for_long() -> None:
    examples = int(os.environ.get("CAPACLOUD_MACHINE_EXAMPLES", "20"))
    run(Market(Evm()), examples=examples, steps=80)
