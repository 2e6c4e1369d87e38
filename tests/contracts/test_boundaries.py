"""Every deadline of the contract: the second before it, its own, and the one after it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from contracts.merkle_sum import SumTree
from contracts.vouchers import Promise
from tests.contracts.market import TERMS, Market, Person, refused


@dataclass(frozen=True, slots=True)
class Parties:
    market: Market
    operator: Person
    payee: Person
    client: Person

    @property
    def tree(self) -> SumTree:
        return SumTree(self.operator.address, {self.payee.address: 100})

    def promise(self) -> tuple[Promise, bytes]:
        return self.market.promise(self.operator, self.payee, 1, 100)

    def post(self) -> None:
        self.market.post(self.operator, {self.payee: 100})

    def settle_and_post(self) -> None:
        self.market.settle(self.operator, {self.payee: 100})
        self.post()

    def post_and_challenge(self) -> None:
        self.post()
        self.market.challenge(self.payee, self.operator, self.payee, 100)

    def ask_to_leave(self) -> None:
        self.market.do(self.client, self.market.calls.request_exit(self.operator.address))

    def nothing(self) -> None:
        """The clock of `declare_stale` runs since the operator staked."""

    def declare_stale(self) -> None:
        self.market.pass_time(TERMS.stale_after_s)
        self.market.do(self.payee, self.market.calls.declare_stale(self.operator.address))

    def declare_stale_and_file(self) -> None:
        self.declare_stale()
        self.market.do(self.payee, self.market.calls.file_promise(*self.promise()))


# What begins the time, how long it is, what is tried, and how that is refused before and from then
# on; None where it is done.
DEADLINES: dict[str, tuple[Callable[[Parties], None], int, str | None, str | None]] = {
    "challenge": (Parties.post, TERMS.window_s, None, "challenge: too late"),
    "finalize": (Parties.post, TERMS.window_s, "finalize: too soon", None),
    "claim": (Parties.settle_and_post, TERMS.window_s // 2, None, "claim: root pending"),
    "respond": (Parties.post_and_challenge, TERMS.response_s, None, "respond: too late"),
    "resolve": (Parties.post_and_challenge, TERMS.response_s, "resolve: too soon", None),
    "exit": (Parties.ask_to_leave, TERMS.exit_delay_s, "exit: too soon", None),
    "declare_stale": (Parties.nothing, TERMS.stale_after_s, "stale: too soon", None),
    "file_promise": (Parties.declare_stale, TERMS.collection_s, None, "file: too late"),
    "claim_stale": (
        Parties.declare_stale_and_file,
        TERMS.collection_s,
        "stale: collecting",
        None,
    ),
    "claim_remainder": (Parties.declare_stale, TERMS.collection_s, "stale: collecting", None),
}


def act(name: str, parties: Parties) -> None:
    market, calls = parties.market, parties.market.calls
    operator, payee = parties.operator.address, parties.payee.address
    leaf = parties.tree.leaf(payee)
    call = {
        "challenge": lambda: calls.challenge(*parties.promise()),
        "finalize": lambda: calls.finalize(operator),
        "claim": lambda: calls.claim(operator, leaf),
        "respond": lambda: calls.respond(operator, leaf),
        "resolve": lambda: calls.resolve(operator, payee),
        "exit": lambda: calls.exit(operator),
        "declare_stale": lambda: calls.declare_stale(operator),
        "file_promise": lambda: calls.file_promise(*parties.promise()),
        "claim_stale": lambda: calls.claim_stale(operator, payee),
        "claim_remainder": lambda: calls.claim_remainder(operator),
    }[name]()
    assert market.do(parties.client if name == "exit" else parties.payee, call)


@pytest.mark.parametrize("off_s", [-1, 0, 1])
@pytest.mark.parametrize("name", DEADLINES)
def test_a_deadline_is_kept_to_the_second(
    market: Market, funded: Person, payee: Person, client: Person, name: str, off_s: int
) -> None:
    parties = Parties(market, funded, payee, client)
    begin, length_s, before, then = DEADLINES[name]
    begin(parties)
    market.pass_time(length_s + off_s)
    reason = before if off_s < 0 else then
    if reason is None:
        act(name, parties)
        return
    with refused(reason):
        act(name, parties)
