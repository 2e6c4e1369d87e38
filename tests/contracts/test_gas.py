"""What a transaction costs, from the receipts of a real chain: ceilings, and growth.

The table in docs/settlement.md is this test's output, and is compared with it.
"""

from collections.abc import Iterator

import pytest

from contracts.keccak import keccak
from contracts.receipts import parse_receipt
from contracts.units import Address, address_from_bytes
from contracts.vouchers import Promise
from tests.contracts.anvil import open_anvil, run_anvil
from tests.contracts.keys import make_key
from tests.contracts.play import TERMS, TOKEN, Party, Play, open_play
from tests.contracts.test_document import rows_below

pytestmark = [pytest.mark.anvil, pytest.mark.slow]

STAKE = 10**6 * TOKEN
CLIENTS = 100
BATCHES = (1, 10, 100)
PAYEES = (1, 10, 100, 1_000, 10_000)
CLAIMS = 32
CEILINGS = {
    "redeem, each of 100, again": 21_500,
    "claim, 1,000 in the tree, again": 77_000,
    "post_root, again": 145_000,
    "deposit, again": 55_000,
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with run_anvil() as url:
        yield url


class Meter:
    def __init__(self, play: Play) -> None:
        self._play = play
        self.table: dict[str, int] = {}

    def note(self, row: str, *, divisor: int = 1) -> None:
        """The newest receipt's gas goes into the table; the dearest of a kind stays."""
        gas = -(-self._play.receipts[-1][1].gas_used // divisor)
        self.table[row] = max(gas, self.table.get(row, 0))

    def rows(self) -> list[str]:
        ceilings = {row: f" {limit:,}" for row, limit in CEILINGS.items()}
        return [f"| {row} | {gas:,} |{ceilings.get(row, '')} |" for row, gas in self.table.items()]


def payee(number: int, of: int) -> Address:
    """Other payees for each size of tree, so that the first claim is a first one."""
    return address_from_bytes(keccak(b"payee" + number.to_bytes(4) + of.to_bytes(4)))


async def measure_deployment(play: Play, meter: Meter) -> None:
    """The first block made the token, the second one the contract."""
    block = await play.chain.call("eth_getBlockByNumber", "0x2", False)
    fields = await play.chain.call("eth_getTransactionReceipt", block["transactions"][0])
    receipt = parse_receipt(fields)
    assert receipt.contract == play.calls.address
    meter.table["deploy"] = receipt.gas_used


async def measure_channels(play: Play, meter: Meter, operator: Party) -> None:
    calls = play.calls
    payer = await play.join("payer", 10**6 * TOKEN)
    clients = [Party(make_key(f"gas-client-{i}"), payer.sender) for i in range(CLIENTS)]
    for client in clients:
        for age in ("first", "again"):
            deposit = calls.deposit(client.address, operator.address, 500 * TOKEN)
            await play.do(payer, "deposit", deposit)
            meter.note(f"deposit, {age}")
    rounds = [(CLIENTS, "first"), *((size, "again") for size in BATCHES)]
    for number, (size, age) in enumerate(rounds, start=1):
        batch = [play.voucher(c, operator, number * TOKEN, number * TOKEN) for c in clients[:size]]
        await play.do(operator, "redeem", calls.redeem(batch))
        meter.note(f"redeem, each of {size}, {age}", divisor=size)
    leaver = await play.join("leaver", TOKEN)
    await play.do(leaver, "deposit", calls.deposit(leaver.address, operator.address, TOKEN))
    await play.do(leaver, "request_exit", calls.request_exit(operator.address))
    meter.note("request_exit")
    await play.chain.pass_time(TERMS.exit_delay_s)
    await play.do(leaver, "exit", calls.exit(operator.address))
    meter.note("exit")


async def measure_epoch(play: Play, meter: Meter, operator: Party, epoch: int, payees: int) -> None:
    """One root of so many payees: post, challenge, respond, finalize, and claims of a few."""
    calls, challenger = play.calls, play.parties["challenger"]
    who = [payee(number, payees) for number in range(payees)]
    age = "again" if await play.reader.paid(operator.address, who[-1]) else "first"
    tree = await play.post(operator, epoch, dict.fromkeys(who, 10 + epoch * 10))
    meter.note(f"post_root, {'first' if epoch == 1 else 'again'}")
    promise = Promise(operator.address, who[0], epoch, 15)
    signature = operator.key.sign(play.domain, promise)
    await play.do(challenger, "challenge", calls.challenge(promise, signature))
    meter.note("challenge")
    await play.do(operator, "respond", calls.respond(operator.address, tree.leaf(who[0])))
    meter.note(f"respond, {payees:,} in the tree")
    await play.chain.pass_time(TERMS.window_s)
    await play.do(operator, "finalize", calls.finalize(operator.address))
    meter.note(f"finalize, {'first' if epoch == 1 else 'again'}")
    await play.do(operator, "claim", calls.claim(operator.address, tree.leaf(who[-1])))
    meter.note(f"claim, {payees:,} in the tree, {age}")
    if payees > CLAIMS:
        leaves = [tree.leaf(address) for address in who[:CLAIMS]]
        await play.do(operator, "claim_many", calls.claim_many(operator.address, leaves))
        row = f"claim_many, {payees:,} in the tree, each of {CLAIMS}, {age}"
        meter.note(row, divisor=CLAIMS)


async def measure_disputes(play: Play, meter: Meter, operator: Party, epoch: int) -> None:
    """A root that is challenged away, an operator that then stops, and the end of its estate."""
    calls, challenger = play.calls, play.parties["challenger"]
    who = challenger.address
    await play.do(operator, "request_unstake", calls.request_unstake())
    meter.note("request_unstake")
    state = await play.reader.active_root(operator.address)
    root = bytes(31) + b"\1"
    await play.do(operator, "post_root", calls.post_root(epoch, root, state.total, bytes(32)))
    promise, signature = play.promise(operator, challenger, epoch, 77)
    await play.do(challenger, "challenge", calls.challenge(promise, signature))
    await play.chain.pass_time(TERMS.response_s)
    await play.do(challenger, "resolve", calls.resolve(operator.address, who))
    meter.note("resolve")
    await play.do(challenger, "withdraw", calls.withdraw(who))
    meter.note("withdraw")
    await play.chain.pass_time(TERMS.stale_after_s)
    await play.do(challenger, "declare_stale", calls.declare_stale(operator.address))
    meter.note("declare_stale")
    await play.do(challenger, "file_promise", calls.file_promise(promise, signature))
    meter.note("file_promise")
    await play.chain.pass_time(TERMS.collection_s)
    await play.do(challenger, "claim_stale", calls.claim_stale(operator.address, who))
    meter.note("claim_stale")


async def test_gas_stays_under_its_ceilings_and_is_what_the_document_says(url: str) -> None:
    async with open_anvil(url) as chain:
        play = await open_play(chain)
        meter = Meter(play)
        await measure_deployment(play, meter)
        operator = await play.join("operator", 2 * STAKE)
        await play.join("challenger", 100 * TOKEN)
        await play.do(operator, "stake", play.calls.stake(STAKE))
        meter.note("stake")
        await measure_channels(play, meter, operator)
        sizes = [payees for payees in PAYEES for _ in range(2)]
        for epoch, payees in enumerate(sizes, start=1):
            await measure_epoch(play, meter, operator, epoch, payees)
        await measure_disputes(play, meter, operator, len(sizes) + 1)
    over = {row: meter.table[row] for row, limit in CEILINGS.items() if meter.table[row] > limit}
    assert not over
    rows = meter.rows()
    assert rows_below("| transaction | gas | ceiling |") == rows, "\n".join(["measured:", *rows])
