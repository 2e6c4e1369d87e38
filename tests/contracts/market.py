"""A deployment in the in-process EVM, with parties, and every move in one line.

market.do(client, market.calls.exit(operator.address))
"""

from dataclasses import astuple, dataclass, replace
from typing import Any

import pytest

from contracts.abi import Artifact, load_artifact
from contracts.chain import Call
from contracts.errors import RevertedError
from contracts.merkle_sum import SumTree
from contracts.receipts import Log
from contracts.settlement import Event, SettlementCalls
from contracts.state import EscrowChannel, OperatorState, RootState, Terms
from contracts.units import Address, address_from_bytes
from contracts.vouchers import Domain, EvmKey, Promise, SignedVoucher, Voucher
from tests.contracts.evm import Evm, settlement_artifact
from tests.contracts.keys import make_key

TERMS = Terms(
    window_s=1_000,
    response_s=400,
    exit_delay_s=3_000,
    stale_after_s=5_000,
    collection_s=700,
    stake_min=100,
    bond=10,
)
WEALTH = 10**9
BURN_ADDRESS = address_from_bytes(bytes(18) + b"\xde\xad")
NOBODY = address_from_bytes(bytes(20))


@dataclass(frozen=True, slots=True)
class Person:
    key: EvmKey

    @property
    def address(self) -> Address:
        return self.key.address


class Market:
    def __init__(self, evm: Evm, *, terms: Terms = TERMS, token: Artifact | None = None) -> None:
        self.evm = evm
        self.terms = terms
        self.token_artifact = token or load_artifact("TestToken")
        self.token = evm.deploy(self.token_artifact.deployment())
        self.artifact = settlement_artifact()
        self.owner = Person(make_key("owner"))
        data = self.artifact.deployment(self.token, astuple(terms))
        self.address = evm.deploy(data, self.owner.address)
        self.calls = SettlementCalls(self.address)
        self.domain = Domain(evm.chain_id, self.address)

    def person(self, name: str, tokens: int = WEALTH) -> Person:
        """A party with `tokens` that the contract may take."""
        person = Person(make_key(name))
        self.token_do(person, "mint", person.address, tokens)
        self.token_do(person, "approve", self.address, 2**256 - 1)
        return person

    def do(self, who: Person, call: Call) -> list[Event]:
        return self._events(self.evm.send(who.address, call)[1])

    def answer(self, who: Person, call: Call) -> int:
        """Do it, and return the number that the contract answered."""
        return int.from_bytes(self.evm.send(who.address, call)[0])

    def token_do(self, who: Person, function: str, *args: Any) -> None:
        self.evm.send(who.address, Call(self.token, self.token_artifact.encode(function, *args)))

    def balance(self, address: Address) -> int:
        return int(self.evm.ask(self.token_artifact, self.token, "balanceOf", address))

    def channel(self, client: Person, operator: Person) -> EscrowChannel:
        return EscrowChannel(*self.ask("channel", client.address, operator.address))

    def operator(self, operator: Person) -> OperatorState:
        return OperatorState(*self.ask("operators", operator.address))

    def active(self, operator: Person) -> RootState:
        return RootState(*self.ask("active_root", operator.address))

    def pending(self, operator: Person) -> RootState:
        return RootState(*self.ask("pending_root", operator.address))

    def owed(self, person: Person) -> int:
        return self.owed_to(person.address)

    def owed_to(self, address: Address) -> int:
        return int(self.ask("owed", address))

    def ask(self, function: str, *args: Any) -> Any:
        return self.evm.ask(self.artifact, self.address, function, *args)

    def pass_time(self, seconds: int) -> None:
        self.evm.now_s += seconds

    def voucher(
        self, client: Person, operator: Person, ceiling: int, charged: int | None = None
    ) -> SignedVoucher:
        voucher = Voucher(client.address, operator.address, ceiling)
        signature = client.key.sign(self.domain, voucher)
        return SignedVoucher(voucher, signature, ceiling if charged is None else charged)

    def redeem(self, client: Person, operator: Person, ceiling: int) -> int:
        """The client signs, and the operator charges all of it."""
        return self.answer(operator, self.calls.redeem([self.voucher(client, operator, ceiling)]))

    def deposit(self, client: Person, operator: Person, amount: int) -> list[Event]:
        return self.do(client, self.calls.deposit(client.address, operator.address, amount))

    def promise(
        self, operator: Person, payee: Person, epoch: int, cumulative: int
    ) -> tuple[Promise, bytes]:
        promise = Promise(operator.address, payee.address, epoch, cumulative)
        return promise, operator.key.sign(self.domain, promise)

    def challenge(
        self, challenger: Person, operator: Person, payee: Person, cumulative: int, epoch: int = 1
    ) -> list[Event]:
        promise = self.promise(operator, payee, epoch, cumulative)
        return self.do(challenger, self.calls.challenge(*promise))

    def post(self, operator: Person, earned: dict[Person, int]) -> SumTree:
        """The next root, without waiting for it."""
        tree = SumTree(operator.address, {who.address: total for who, total in earned.items()})
        epoch = self.operator(operator).next_epoch
        self.do(operator, self.calls.post_root(epoch, tree.root, tree.total, bytes(32)))
        return tree

    def settle(self, operator: Person, earned: dict[Person, int]) -> SumTree:
        """The next root, final."""
        tree = self.post(operator, earned)
        self.pass_time(self.terms.window_s)
        self.do(operator, self.calls.finalize(operator.address))
        return tree

    def claim(self, operator: Person, tree: SumTree, payee: Person) -> int:
        return self.answer(payee, self.calls.claim(operator.address, tree.leaf(payee.address)))

    def _events(self, logs: list[Log]) -> list[Event]:
        found = []
        for log in logs:
            event = self.artifact.decode_event(log.topics, log.data)
            if event is not None and log.address == self.address:
                found.append(Event(event[0], event[1], log.block, log.index, log.transaction))
        return found


def refused(reason: str) -> pytest.RaisesExc[RevertedError]:
    """The contract's reason, from its beginning."""
    return pytest.raises(RevertedError, match=f"refused: {reason}")


def with_charge(item: SignedVoucher, charged: int) -> SignedVoucher:
    return replace(item, charged=charged)
