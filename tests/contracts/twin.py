"""A market that exists twice: in the contract and in the model. Every move is made in both.

Each method is one move. It compares the outcome, the reason of a refusal and the answer, and
returns whether the move was made. What holds after every move is in `check`.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict

from contracts.chain import Call
from contracts.errors import RevertedError
from contracts.merkle_sum import Leaf, SumTree
from contracts.units import Address
from tests.contracts.market import BURN_ADDRESS, TERMS, WEALTH, Market
from tests.contracts.model import BURN, Model, Refusal, Root

CLIENTS = ("client", "shill")
OPERATORS = ("honest", "crook")
PAYEES = ("node", "mate", "honest", "crook")
EVERYONE = ("client", "shill", "honest", "crook", "node", "mate")
# Moves that anyone may make are made by this one, who gains nothing by them.
SOMEONE = "mate"


class Twin:
    def __init__(self, market: Market) -> None:
        self.market = market
        self.people = {name: market.person(name) for name in EVERYONE}
        self.model = Model(market.evm.now_s, **asdict(TERMS))
        # What each client has signed for each operator, and each operator for each payee: its
        # epoch, and how much.
        self.ceilings: dict[tuple[str, str], int] = defaultdict(int)
        self.promised: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        # Selectors of the calls that the contract took.
        self.made: set[bytes] = set()

    # The client's leg.

    def set_paused(self, paused: bool) -> None:
        self.market.do(self.market.owner, self.market.calls.set_paused(paused))
        self.model.paused = paused

    def deposit(self, client: str, operator: str, amount: int) -> bool:
        call = self.market.calls.deposit(self.address(client), self.address(operator), amount)
        return self._both(client, call, lambda: self.model.deposit(client, operator, amount))

    def redeem(self, operator: str, charges: Sequence[tuple[str, int]]) -> bool:
        """`charges` are (client, cumulative charge); the client's newest ceiling is shown."""
        tops = [(client, self.ceilings[client, operator], charged) for client, charged in charges]
        items = [
            self.market.voucher(self.people[client], self.people[operator], top, charged)
            for client, top, charged in tops
        ]
        call = self.market.calls.redeem(items)
        return self._both(operator, call, lambda: self.model.redeem(operator, tops))

    def request_exit(self, client: str, operator: str) -> bool:
        call = self.market.calls.request_exit(self.address(operator))
        return self._both(client, call, lambda: self.model.request_exit(client, operator))

    def exit(self, client: str, operator: str) -> bool:
        call = self.market.calls.exit(self.address(operator))
        return self._both(client, call, lambda: self.model.exit(client, operator))

    # The operator's leg.

    def stake(self, operator: str, amount: int) -> bool:
        call = self.market.calls.stake(amount)
        return self._both(operator, call, lambda: self.model.stake(operator, amount))

    def request_unstake(self, operator: str) -> bool:
        call = self.market.calls.request_unstake()
        return self._both(operator, call, lambda: self.model.request_unstake(operator))

    def unstake(self, operator: str) -> bool:
        call = self.market.calls.unstake()
        return self._both(operator, call, lambda: self.model.unstake(operator))

    def post(self, operator: str, leaves: dict[str, int], lie: int = 0) -> bool:
        """The next root; `lie` is by how much the total exceeds the sum of the leaves."""
        tree = self._tree(operator, leaves)
        epoch = max(1, self.model.operators[operator].next_epoch)
        total = tree.total + lie
        call = self.market.calls.post_root(epoch, tree.root, total, bytes(32))
        return self._both(operator, call, lambda: self.model.post_root(operator, leaves, total))

    def challenge(self, who: str, operator: str, payee: str, epoch: int, amount: int) -> bool:
        """With the operator's signature, unless the amount was paid already."""
        promise, signature = self.market.promise(
            self.people[operator], self.people[payee], epoch, amount
        )
        paid = self.model.operators[operator].paid[payee]
        call = self.market.calls.challenge(promise, b"" if amount <= paid else signature)
        return self._both(
            who, call, lambda: self.model.challenge(who, operator, payee, epoch, amount)
        )

    def respond(self, operator: str, payee: str) -> bool:
        root = self.model.operators[operator].pending or Root()
        call = self.market.calls.respond(self.address(operator), self._leaf(operator, root, payee))
        return self._both(SOMEONE, call, lambda: self.model.respond(operator, payee))

    def resolve(self, operator: str, payee: str) -> bool:
        call = self.market.calls.resolve(self.address(operator), self.address(payee))
        return self._both(SOMEONE, call, lambda: self.model.resolve(operator, payee))

    def reclaim_bond(self, operator: str, epoch: int, payee: str) -> bool:
        call = self.market.calls.reclaim_bond(self.address(operator), epoch, self.address(payee))
        return self._both(SOMEONE, call, lambda: self.model.reclaim_bond(operator, epoch, payee))

    def finalize(self, operator: str) -> bool:
        call = self.market.calls.finalize(self.address(operator))
        return self._both(SOMEONE, call, lambda: self.model.finalize(operator))

    # The payees' leg.

    def claim(self, operator: str, payee: str) -> bool:
        leaf = self._leaf(operator, self.model.operators[operator].active, payee)
        call = self.market.calls.claim(self.address(operator), leaf)
        return self._both(SOMEONE, call, lambda: self.model.claim(operator, payee))

    def withdraw(self, who: str) -> bool:
        call = self.market.calls.withdraw(self.address(who))
        return self._both(SOMEONE, call, lambda: self.model.withdraw(who))

    def declare_stale(self, operator: str) -> bool:
        call = self.market.calls.declare_stale(self.address(operator))
        return self._both(SOMEONE, call, lambda: self.model.declare_stale(operator))

    def file_promise(self, operator: str, payee: str, amount: int) -> bool:
        promise = self.market.promise(self.people[operator], self.people[payee], 9, amount)
        call = self.market.calls.file_promise(*promise)
        return self._both(SOMEONE, call, lambda: self.model.file_promise(operator, payee, amount))

    def claim_stale(self, operator: str, payee: str) -> bool:
        call = self.market.calls.claim_stale(self.address(operator), self.address(payee))
        return self._both(SOMEONE, call, lambda: self.model.claim_stale(operator, payee))

    def claim_remainder(self, operator: str) -> bool:
        call = self.market.calls.claim_remainder(self.address(operator))
        return self._both(SOMEONE, call, lambda: self.model.claim_remainder(operator))

    # Time, and what is asked of both.

    def pass_time(self, seconds: int) -> None:
        self.market.pass_time(seconds)
        self.model.now += seconds

    def is_open(self, name: str, args: tuple[str | int, ...]) -> bool:
        """Whether the model would take this move now."""
        try:
            getattr(deepcopy(self.model), name)(*args)
        except Refusal:
            return False
        return True

    def address(self, name: str) -> Address:
        return BURN_ADDRESS if name == BURN else self.people[name].address

    def check(self) -> None:
        """What must hold after every move."""
        market, model = self.market, self.model
        assert market.balance(market.address) == model.held()
        for name in OPERATORS:
            book, state = model.operators[name], market.operator(self.people[name])
            assert asdict(state) == {field: getattr(book, field) for field in asdict(state)}
            assert book.claimed <= book.active.total <= book.credit
            assert market.active(self.people[name]).total == book.active.total
            pending = market.pending(self.people[name])
            assert pending.epoch == (book.pending.epoch if book.pending else 0)
            assert pending.disputes == (book.pending.disputes() if book.pending else 0)
        for (client, operator), escrow in model.escrows.items():
            channel = market.channel(self.people[client], self.people[operator])
            assert asdict(channel) == asdict(escrow)
            assert channel.redeemed <= self.ceilings[client, operator]

    def check_wallets(self) -> None:
        """Where all tokens are. A wrong payment stays wrong, so now and then is often enough."""
        for name in (*EVERYONE, BURN):
            before = 0 if name == BURN else WEALTH
            held = self.market.balance(self.address(name))
            assert held == before + self.model.wallets[name], name
            assert self.market.ask("owed", self.address(name)) == self.model.owed[name], name

    def _both(self, who: str, call: Call, expect: Callable[[], object]) -> bool:
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

    def _leaf(self, operator: str, root: Root, payee: str) -> Leaf:
        if payee not in root.leaves:
            return Leaf(self.address(payee), 0, 1, ())
        return self._tree(operator, root.leaves).leaf(self.address(payee))

    def _tree(self, operator: str, leaves: dict[str, int]) -> SumTree:
        earned = {self.address(name): amount for name, amount in leaves.items()}
        return SumTree(self.address(operator), earned)
