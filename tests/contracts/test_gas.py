"""What a transaction costs, from the receipts of a real chain: ceilings, and growth.

The table in docs/settlement.md is this test's output: run it with `-s` to see it.
"""

from collections.abc import Iterator

import pytest

from contracts.keccak import keccak
from contracts.units import Address, address_from_bytes
from tests.contracts.anvil import open_anvil, run_anvil
from tests.contracts.keys import make_key
from tests.contracts.play import TERMS, TOKEN, Party, Play, open_play

pytestmark = [pytest.mark.anvil, pytest.mark.slow]

STAKE = 10**6 * TOKEN
CLIENTS = 100
PAYEES = (1, 10, 100, 1_000, 10_000)
CEILINGS = {
    "redeem 100, each, again": 21_500,
    "claim of 1000, again": 77_000,
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

    def note(self, row: str, divisor: int = 1) -> None:
        """The newest receipt's gas goes into the table."""
        gas = -(-self._play.receipts[-1][1].gas_used // divisor)
        self.table[row] = max(gas, self.table.get(row, 0))


def payee(number: int) -> Address:
    return address_from_bytes(keccak(b"payee" + number.to_bytes(4)))


async def measure_channels(play: Play, meter: Meter, operator: Party) -> None:
    calls = play.calls
    clients = [make_key(f"gas-client-{i}") for i in range(CLIENTS)]
    payer = await play.join("payer", 10**6 * TOKEN)
    for client in clients:
        for age in ("first", "again"):
            await play.do(
                payer, "deposit", calls.deposit(client.address, operator.address, 500 * TOKEN)
            )
            meter.note(f"deposit, {age}")
    parties = [Party(client, payer.sender) for client in clients]
    charged = 0
    for size in (1, 10, 100):
        for age in ("first", "again"):
            charged += TOKEN
            batch = [play.voucher(p, operator, charged, charged) for p in parties[-size:]]
            await play.do(operator, "redeem", calls.redeem(batch))
            if age == "again":
                meter.note(f"redeem {size}, each, again", size)
    fresh = [await fresh_client(play, payer, operator, i) for i in range(CLIENTS)]
    batch = [play.voucher(p, operator, TOKEN, TOKEN) for p in fresh]
    await play.do(operator, "redeem", calls.redeem(batch))
    meter.note("redeem 100, each, first", 100)
    leaver = await play.join("leaver", TOKEN)
    await play.do(leaver, "deposit", calls.deposit(leaver.address, operator.address, TOKEN))
    await play.do(leaver, "request_exit", calls.request_exit(operator.address))
    meter.note("request_exit")
    await play.chain.pass_time(TERMS.exit_delay_s)
    await play.do(leaver, "exit", calls.exit(operator.address))
    meter.note("exit")


async def fresh_client(play: Play, payer: Party, operator: Party, number: int) -> Party:
    key = make_key(f"fresh-client-{number}")
    await play.do(payer, "deposit", play.calls.deposit(key.address, operator.address, TOKEN))
    return Party(key, payer.sender)


async def measure_epoch(play: Play, meter: Meter, operator: Party, epoch: int, payees: int) -> None:
    """One root of so many payees: post, challenge, respond, finalize, and claims of a few."""
    calls, age = play.calls, "first" if epoch == 1 else "again"
    who = [payee(i) for i in range(payees)]
    tree = await play.post(operator, epoch, dict.fromkeys(who, 10 + epoch * 10))
    meter.note(f"post_root, {age}")
    challenger = play.parties["challenger"]
    promise = play.promise(operator, challenger, epoch, 1)[0]
    promise = type(promise)(promise.operator, who[0], epoch, 15)
    signature = operator.key.sign(play.domain, promise)
    await play.do(challenger, "challenge", calls.challenge(promise, signature))
    meter.note("challenge")
    await play.do(operator, "respond", calls.respond(operator.address, tree.leaf(who[0])))
    meter.note(f"respond of {payees}")
    await play.chain.pass_time(TERMS.window_s)
    await play.do(operator, "finalize", calls.finalize(operator.address))
    meter.note(f"finalize, {age}")
    seen = await play.reader.paid(operator.address, who[-1])
    for address in who[-1:]:
        await play.do(operator, "claim", calls.claim(operator.address, tree.leaf(address)))
        meter.note(f"claim of {payees}, {'again' if seen else 'first'}")
    # The same payees are paid again by the next root of this size.
    leaves = [tree.leaf(a) for a in who[:32]]
    if len(leaves) == 32:
        already = await play.reader.paid(operator.address, who[0])
        await play.do(operator, "claim_many", calls.claim_many(operator.address, leaves))
        meter.note(f"claim_many of {payees}, each of 32, {'again' if already else 'first'}", 32)


async def measure_disputes(play: Play, meter: Meter, operator: Party, epoch: int) -> None:
    calls, challenger = play.calls, play.parties["challenger"]
    await play.do(operator, "request_unstake", calls.request_unstake())
    meter.note("request_unstake")
    state = await play.reader.active_root(operator.address)
    await play.do(
        operator, "post_root", calls.post_root(epoch, bytes(31) + b"\1", state.total, bytes(32))
    )
    promise, signature = play.promise(operator, challenger, epoch, 77)
    await play.do(challenger, "challenge", calls.challenge(promise, signature))
    await play.chain.pass_time(TERMS.response_s)
    await play.do(challenger, "resolve", calls.resolve(operator.address, challenger.address))
    meter.note("resolve")
    await play.do(challenger, "withdraw", calls.withdraw())
    meter.note("withdraw")
    await play.chain.pass_time(TERMS.stale_after_s)
    await play.do(challenger, "declare_stale", calls.declare_stale(operator.address))
    meter.note("declare_stale")
    await play.do(challenger, "file_promise", calls.file_promise(promise, signature))
    meter.note("file_promise")
    await play.chain.pass_time(TERMS.collection_s)
    claim = calls.claim_stale(operator.address, challenger.address)
    await play.do(challenger, "claim_stale", claim)
    meter.note("claim_stale")


async def test_gas_stays_under_its_ceilings(url: str) -> None:
    async with open_anvil(url) as chain:
        play = await open_play(chain)
        meter = Meter(play)
        operator = await play.join("operator", 2 * STAKE)
        await play.join("challenger", 100 * TOKEN)
        await play.do(operator, "stake", play.calls.stake(STAKE))
        meter.note("stake")
        await measure_channels(play, meter, operator)
        epoch = 0
        for payees in PAYEES:
            for _ in range(2):
                epoch += 1
                await measure_epoch(play, meter, operator, epoch, payees)
        await measure_disputes(play, meter, operator, epoch + 1)
    lines = [f"| {row} | {gas:,} |" for row, gas in meter.table.items()]
    print("\n| transaction | gas |\n|---|---|\n" + "\n".join(lines))
    over = {row: meter.table[row] for row, limit in CEILINGS.items() if meter.table[row] > limit}
    assert not over
