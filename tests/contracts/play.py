"""A small market on a real chain: who is in it, and the moves that tests make."""

from dataclasses import dataclass, field

from contracts.chain import Call, Sender
from contracts.deploy import deploy_settlement, deploy_test_token
from contracts.erc20 import Token
from contracts.merkle_sum import SumTree
from contracts.receipts import TransactionReceipt
from contracts.settlement import SettlementCalls, SettlementReader
from contracts.state import Terms
from contracts.units import Address
from contracts.vouchers import Domain, EvmKey, Promise, SignedVoucher, Voucher
from tests.contracts.anvil import CHAIN_ID, Anvil
from tests.contracts.keys import make_key

TOKEN = 10**6
TERMS = Terms(
    window_s=600,
    response_s=300,
    exit_delay_s=2_400,
    stale_after_s=3_600,
    collection_s=1_200,
    stake_min=100 * TOKEN,
    bond=5 * TOKEN,
)


@dataclass
class Party:
    key: EvmKey
    sender: Sender
    # Every transaction of a party needs its own key; a counter names them.
    sent: int = 0

    @property
    def address(self) -> Address:
        return self.key.address


@dataclass
class Play:
    """One deployment and the people around it."""

    chain: Anvil
    token: Token
    calls: SettlementCalls
    reader: SettlementReader
    domain: Domain
    parties: dict[str, Party] = field(default_factory=dict)
    receipts: list[tuple[str, TransactionReceipt]] = field(default_factory=list)

    async def join(self, name: str, tokens: int = 0) -> Party:
        """A new party with `tokens` units, all of which the contract may take."""
        key = make_key(name)
        party = Party(key, await self.chain.sender(key))
        self.parties[name] = party
        if tokens:
            await self.do(party, "mint", self.token.mint(party.address, tokens))
        await self.do(party, "approve", self.token.approve(self.calls.address))
        return party

    async def do(self, party: Party, what: str, call: Call) -> TransactionReceipt:
        party.sent += 1
        receipt = await party.sender.send(f"{what}-{party.sent}", call)
        self.receipts.append((what, receipt))
        return receipt

    def voucher(self, client: Party, operator: Party, ceiling: int, charged: int) -> SignedVoucher:
        voucher = Voucher(client.address, operator.address, ceiling)
        return SignedVoucher(voucher, client.key.sign(self.domain, voucher), charged)

    def promise(
        self, operator: Party, payee: Party, epoch: int, cumulative: int
    ) -> tuple[Promise, bytes]:
        promise = Promise(operator.address, payee.address, epoch, cumulative)
        return promise, operator.key.sign(self.domain, promise)

    async def post(self, operator: Party, epoch: int, earnings: dict[Address, int]) -> SumTree:
        tree = SumTree(operator.address, earnings)
        anchor = epoch.to_bytes(32)
        await self.do(
            operator, "post_root", self.calls.post_root(epoch, tree.root, tree.total, anchor)
        )
        return tree

    async def balances(self) -> dict[str, int]:
        return {
            name: await self.token.balance(party.address) for name, party in self.parties.items()
        }


async def open_play(chain: Anvil, terms: Terms = TERMS) -> Play:
    owner = make_key("owner")
    sender = await chain.sender(owner)
    token = await deploy_test_token(sender)
    contract = await deploy_settlement(sender, token, terms)
    return Play(
        chain=chain,
        token=Token(chain.rpc, token),
        calls=SettlementCalls(contract),
        reader=SettlementReader(chain.rpc, contract),
        domain=Domain(CHAIN_ID, contract),
    )
