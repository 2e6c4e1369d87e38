"""What the contract should do, written a second time: plain numbers, no tokens, no signatures.

It shares no code with the contract and none with its client. A refusal is a `Refusal` with the
contract's reason, so that the machine compares not only what happens but why.
"""

from collections import defaultdict
from dataclasses import dataclass, field

BURN = "burn"


class Refusal(Exception):
    pass


def require(condition: bool, reason: str) -> None:
    if not condition:
        raise Refusal(reason)


@dataclass
class Escrow:
    balance: int = 0
    redeemed: int = 0
    exit_at: int = 0


@dataclass
class Root:
    leaves: dict[str, int] = field(default_factory=dict)
    total: int = 0
    epoch: int = 0
    posted_at: int = 0
    # payee -> (challenger or "", cumulative, deadline)
    slots: dict[str, tuple[str, int, int]] = field(default_factory=dict)

    def is_true(self) -> bool:
        return sum(self.leaves.values()) == self.total

    def disputes(self) -> int:
        return sum(1 for challenger, _, _ in self.slots.values() if challenger)


@dataclass
class Operator:
    stake: int = 0
    credit: int = 0
    claimed: int = 0
    next_epoch: int = 0
    fresh_at: int = 0
    unstake_epoch: int = 0
    stale_at: int = 0
    active: Root = field(default_factory=Root)
    pending: Root | None = None
    cancelled: dict[int, Root] = field(default_factory=dict)
    reserve: int = 0
    left: int = 0
    weights: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    weight: int = 0
    paid: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Model:
    def __init__(self, now: int, **terms: int) -> None:
        self.now = now
        self.terms = terms
        self.wallets: dict[str, int] = defaultdict(int)
        self.escrows: dict[tuple[str, str], Escrow] = defaultdict(Escrow)
        self.operators: dict[str, Operator] = defaultdict(Operator)
        self.owed: dict[str, int] = defaultdict(int)
        self.paused = False

    # The client's leg.

    def deposit(self, client: str, operator: str, amount: int) -> None:
        escrow = self.escrows[client, operator]
        require(not self.paused, "deposit: paused")
        require(amount > 0, "deposit: nothing")
        require(escrow.exit_at == 0, "deposit: exiting")
        escrow.balance += amount
        self.wallets[client] -= amount

    def redeem(self, operator: str, charges: list[tuple[str, int, int]]) -> int:
        """`charges` are (client, ceiling, charged)."""
        book = self.operators[operator]
        require(book.stale_at == 0, "redeem: stale")
        room = book.active.total + book.stake // 2 - book.credit
        require(room > 0, "redeem: post a root first")
        require(all(charged <= top for _, top, charged in charges), "redeem: over the ceiling")
        collected = 0
        for client, _, charged in charges:
            escrow = self.escrows[client, operator]
            due = max(0, charged - escrow.redeemed)
            amount = min(due, escrow.balance, room - collected)
            escrow.balance -= amount
            escrow.redeemed += amount
            collected += amount
        book.credit += collected
        return collected

    def request_exit(self, client: str, operator: str) -> None:
        escrow = self.escrows[client, operator]
        require(escrow.exit_at == 0, "exit: requested")
        require(escrow.balance > 0, "exit: nothing")
        escrow.exit_at = self.now + self.terms["exit_delay_s"]

    def exit(self, client: str, operator: str) -> int:
        escrow = self.escrows[client, operator]
        require(escrow.exit_at > 0, "exit: not requested")
        require(self.now >= escrow.exit_at, "exit: too soon")
        amount, escrow.balance, escrow.exit_at = escrow.balance, 0, 0
        self.wallets[client] += amount
        return amount

    # The operator's leg.

    def stake(self, operator: str, amount: int) -> None:
        book = self.operators[operator]
        require(amount > 0, "stake: nothing")
        require(book.stale_at == 0, "stake: stale")
        require(book.stake + amount >= self.terms["stake_min"], "stake: too small")
        if book.stake == 0 and book.credit == book.active.total:
            book.fresh_at = self.now
        book.next_epoch = max(1, book.next_epoch)
        book.stake += amount
        book.unstake_epoch = 0
        self.wallets[operator] -= amount

    def request_unstake(self, operator: str) -> None:
        book = self.operators[operator]
        require(book.stake > 0, "unstake: nothing")
        require(book.unstake_epoch == 0, "unstake: requested")
        book.unstake_epoch = book.next_epoch + 1

    def unstake(self, operator: str) -> int:
        book = self.operators[operator]
        require(book.unstake_epoch > 0, "unstake: not requested")
        require(book.stake > 0, "unstake: nothing")
        require(book.pending is None, "unstake: root pending")
        require(book.active.epoch >= book.unstake_epoch, "unstake: too soon")
        require(book.credit == book.active.total, "unstake: credit un-rooted")
        amount, book.stake, book.unstake_epoch = book.stake, 0, 0
        self.wallets[operator] += amount
        return amount

    def post_root(self, operator: str, leaves: dict[str, int], total: int) -> None:
        book = self.operators[operator]
        growth = total - book.active.total
        require(book.stale_at == 0, "root: stale")
        require(book.pending is None, "root: one is pending")
        require(book.next_epoch > 0, "root: not the next epoch")
        require(book.stake >= self.terms["stake_min"], "root: stake too small")
        require(growth >= 0, "root: total goes back")
        require(total <= book.credit, "root: total over credit")
        require(growth <= book.stake // 2, "root: over the stake")
        book.pending = Root(dict(leaves), total, book.next_epoch, self.now)
        book.next_epoch += 1

    def challenge(self, who: str, operator: str, payee: str, epoch: int, amount: int) -> None:
        root = self.operators[operator].pending
        require(root is not None, "challenge: no root")
        assert root is not None
        require(self.now < root.posted_at + self.terms["window_s"], "challenge: too late")
        require(epoch <= root.epoch, "challenge: for a later root")
        holder, shown, _ = root.slots.get(payee, ("", 0, 0))
        require(amount > shown, "challenge: not more")
        if holder:
            self.owed[holder] += self.terms["bond"]
        root.slots[payee] = (who, amount, self.now + self.terms["response_s"])
        self.wallets[who] -= self.terms["bond"]

    def respond(self, operator: str, payee: str) -> None:
        root = self.operators[operator].pending or Root()
        holder, amount, deadline = root.slots.get(payee, ("", 0, 0))
        require(bool(holder), "respond: no challenge")
        require(self.now < deadline, "respond: too late")
        leaf = root.leaves.get(payee, 0)
        require(leaf >= amount, "respond: leaf too small")
        require(root.is_true(), "respond: bad proof")
        root.slots[payee] = ("", leaf, 0)
        self.owed[operator] += self.terms["bond"]

    def resolve(self, operator: str, payee: str) -> None:
        book = self.operators[operator]
        root = book.pending or Root()
        holder, amount, deadline = root.slots.get(payee, ("", 0, 0))
        require(bool(holder), "resolve: no challenge")
        require(self.now >= deadline, "resolve: too soon")
        root.slots[payee] = ("", amount, deadline)
        self.owed[holder] += book.stake // 2 + self.terms["bond"]
        self.owed[BURN] += book.stake - book.stake // 2
        book.stake = 0
        book.cancelled[root.epoch] = root
        book.pending = None

    def reclaim_bond(self, operator: str, epoch: int, payee: str) -> None:
        book = self.operators[operator]
        require(book.pending is None or book.pending.epoch != epoch, "reclaim: root pending")
        root = book.cancelled.get(epoch, Root())
        holder, amount, deadline = root.slots.get(payee, ("", 0, 0))
        require(bool(holder), "reclaim: no challenge")
        root.slots[payee] = ("", amount, deadline)
        self.owed[holder] += self.terms["bond"]

    def finalize(self, operator: str) -> None:
        book = self.operators[operator]
        require(book.pending is not None, "finalize: no root")
        assert book.pending is not None
        over = book.pending.posted_at + self.terms["window_s"]
        require(self.now >= over, "finalize: too soon")
        require(book.pending.disputes() == 0, "finalize: disputed")
        book.active, book.pending = book.pending, None
        book.fresh_at = book.active.posted_at

    def withdraw(self, who: str) -> int:
        require(self.owed[who] > 0, "vault: nothing owed")
        amount, self.owed[who] = self.owed[who], 0
        self.wallets[who] += amount
        return amount

    # The payees' leg.

    def claim(self, operator: str, payee: str) -> int:
        book = self.operators[operator]
        closed_at = book.pending.posted_at + self.terms["window_s"] // 2 if book.pending else 0
        require(not closed_at or self.now < closed_at, "claim: root pending")
        require(book.active.is_true() and payee in book.active.leaves, "claim: bad proof")
        due = max(0, book.active.leaves[payee] - book.paid[payee])
        amount = min(due, book.active.total - book.claimed)
        collected_at = book.stale_at + self.terms["collection_s"] if book.stale_at else 0
        is_divided = bool(collected_at) and self.now >= collected_at
        require(not (amount and is_divided and book.weights[payee]), "claim: claim_stale first")
        book.claimed += amount
        self._pay(operator, payee, amount)
        if book.stale_at and not is_divided:
            less = min(amount, book.weights[payee])
            book.weights[payee] -= less
            book.weight -= less
        return amount

    def declare_stale(self, operator: str) -> None:
        book = self.operators[operator]
        require(book.stale_at == 0, "stale: declared")
        require(book.pending is None, "stale: root pending")
        require(book.stake > 0 or book.credit > book.active.total, "stale: nothing at stake")
        over = book.fresh_at + self.terms["stale_after_s"]
        require(self.now >= over, "stale: too soon")
        self.owed[BURN] += book.stake - book.stake // 2
        book.reserve = book.left = book.credit - book.active.total + book.stake // 2
        book.stake, book.credit, book.stale_at = 0, book.active.total, self.now

    def file_promise(self, operator: str, payee: str, amount: int) -> None:
        book = self.operators[operator]
        require(book.stale_at > 0, "file: not stale")
        require(self.now < book.stale_at + self.terms["collection_s"], "file: too late")
        more = amount - book.paid[payee] - book.weights[payee]
        require(more > 0, "file: not more")
        book.weights[payee] += more
        book.weight += more

    def claim_stale(self, operator: str, payee: str) -> int:
        book = self._closed(operator)
        weight = book.weights[payee]
        require(weight > 0, "stale: nothing filed")
        share = weight * book.reserve // max(book.weight, book.reserve)
        if book.weight <= book.reserve:
            share = weight
        book.weights[payee] = 0
        self._inherit(operator, share)
        self._pay(operator, payee, share)
        return share

    def claim_remainder(self, operator: str) -> int:
        book = self._closed(operator)
        require(book.reserve > book.weight, "stale: no remainder")
        rest, book.reserve = book.reserve - book.weight, book.weight
        self._inherit(operator, rest)
        self.wallets[operator] += rest
        return rest

    def held(self) -> int:
        """The tokens that the contract must hold: everything that anyone can still be paid."""
        escrows = sum(escrow.balance for escrow in self.escrows.values())
        books = sum(b.stake + b.credit - b.claimed + b.left for b in self.operators.values())
        roots = [b.pending for b in self.operators.values() if b.pending]
        roots += [root for b in self.operators.values() for root in b.cancelled.values()]
        bonds = self.terms["bond"] * sum(root.disputes() for root in roots)
        return escrows + books + bonds + sum(self.owed.values())

    def _closed(self, operator: str) -> Operator:
        book = self.operators[operator]
        require(book.stale_at > 0, "stale: not declared")
        require(self.now >= book.stale_at + self.terms["collection_s"], "stale: collecting")
        return book

    def _inherit(self, operator: str, amount: int) -> None:
        """No minimum with what is left: if shares can exceed the estate, that must be seen."""
        self.operators[operator].left -= amount
        assert self.operators[operator].left >= 0

    def _pay(self, operator: str, payee: str, amount: int) -> None:
        self.operators[operator].paid[payee] += amount
        self.wallets[payee] += amount
