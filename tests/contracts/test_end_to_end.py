"""A whole life of a deployment on a real chain, through the client, to the last token unit."""

from collections.abc import Iterator

import pytest

from contracts.errors import RevertedError
from contracts.units import parse_address
from tests.contracts.anvil import open_anvil, run_anvil
from tests.contracts.play import TERMS, TOKEN, Party, Play, open_play

pytestmark = [pytest.mark.anvil, pytest.mark.slow]

CLIENT_TOKENS = 1_000 * TOKEN
STAKE = 400 * TOKEN
BURN_ADDRESS = parse_address("0x000000000000000000000000000000000000dEaD")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with run_anvil() as url:
        yield url


async def final(play: Play, operator: Party) -> None:
    await play.chain.pass_time(TERMS.window_s)
    await play.do(operator, "finalize", play.calls.finalize(operator.address))


async def open_market(play: Play) -> tuple[Party, list[Party], list[Party]]:
    operator = await play.join("operator", STAKE * 2)
    nodes = [await play.join(f"node-{i}", TERMS.bond) for i in range(3)]
    clients = [await play.join(f"client-{i}", CLIENT_TOKENS) for i in range(5)]
    await play.do(operator, "stake", play.calls.stake(STAKE))
    for client in clients:
        deposit = play.calls.deposit(client.address, operator.address, 100 * TOKEN)
        await play.do(client, "deposit", deposit)
    return operator, nodes, clients


async def test_three_epochs_one_of_them_dishonest(url: str) -> None:
    async with open_anvil(url) as chain:
        play = await open_play(chain)
        operator, nodes, clients = await open_market(play)
        calls, reader = play.calls, play.reader

        # Epoch 1, honest: five clients pay 10, 11, ..., 14 tokens; the nodes share all but the fee.
        vouchers = [
            play.voucher(c, operator, 50 * TOKEN, (10 + i) * TOKEN) for i, c in enumerate(clients)
        ]
        await play.do(operator, "redeem", calls.redeem(vouchers))
        fee, shares = 6 * TOKEN, [18 * TOKEN, 18 * TOKEN + 1, 18 * TOKEN - 1]
        earned = {n.address: s for n, s in zip(nodes, shares, strict=True)} | {
            operator.address: fee
        }
        tree = await play.post(operator, 1, earned)
        await final(play, operator)
        leaves = [tree.leaf(n.address) for n in nodes]
        await play.do(nodes[0], "claim_many", calls.claim_many(operator.address, leaves))
        await play.do(nodes[0], "claim", calls.claim(operator.address, leaves[1]))
        assert [await play.token.balance(n.address) - TERMS.bond for n in nodes] == shares

        # Epoch 2, dishonest: node 0's new work is given to the operator. It holds a promise.
        vouchers = [play.voucher(c, operator, 50 * TOKEN, 30 * TOKEN) for c in clients]
        await play.do(operator, "redeem", calls.redeem(vouchers))
        promise, signature = play.promise(operator, nodes[0], 2, 40 * TOKEN)
        await play.post(operator, 2, earned | {operator.address: fee + 90 * TOKEN})
        await play.do(nodes[0], "challenge", calls.challenge(promise, signature))
        await play.chain.pass_time(TERMS.response_s)
        await play.do(nodes[1], "resolve", calls.resolve(operator.address, nodes[0].address))
        await play.do(nodes[0], "withdraw", calls.withdraw(nodes[0].address))
        assert await play.token.balance(nodes[0].address) == shares[0] + TERMS.bond + STAKE // 2
        assert (await reader.operator(operator.address)).stake == 0

        # Epoch 3, honest again: it must stake before it can go on.
        with pytest.raises(RevertedError, match="stake too small"):
            await play.post(operator, 3, earned)
        await play.do(operator, "stake", calls.stake(STAKE))
        earned |= {nodes[0].address: 40 * TOKEN, operator.address: fee + 20 * TOKEN}
        tree = await play.post(operator, 3, earned)
        assert tree.total <= (await reader.operator(operator.address)).credit
        await final(play, operator)
        for party in (*nodes, operator):
            await play.do(party, "claim", calls.claim(operator.address, tree.leaf(party.address)))

        # Two clients leave; the others stay.
        for client in clients[:2]:
            await play.do(client, "request_exit", calls.request_exit(operator.address))
        with pytest.raises(RevertedError, match="exit: too soon"):
            await play.do(clients[0], "exit", calls.exit(operator.address))
        await play.chain.pass_time(TERMS.exit_delay_s)
        for client in clients[:2]:
            await play.do(client, "exit", calls.exit(operator.address))

        balances = await play.balances()
        assert balances == {
            "operator": fee + 20 * TOKEN,
            "node-0": 40 * TOKEN + TERMS.bond + STAKE // 2,
            "node-1": shares[1] + TERMS.bond,
            "node-2": shares[2] + TERMS.bond,
            "client-0": 970 * TOKEN,
            "client-1": 970 * TOKEN,
            "client-2": 900 * TOKEN,
            "client-3": 900 * TOKEN,
            "client-4": 900 * TOKEN,
        }
        await play.do(nodes[1], "withdraw", calls.withdraw(BURN_ADDRESS))
        state = await reader.operator(operator.address)
        held = await play.token.balance(calls.address)
        assert held == 3 * 70 * TOKEN + STAKE + state.credit - state.claimed
        assert await play.token.balance(BURN_ADDRESS) == STAKE // 2


async def test_stale_operator_is_divided_pro_rata(url: str) -> None:
    async with open_anvil(url) as chain:
        play = await open_play(chain)
        operator, nodes, clients = await open_market(play)
        calls = play.calls
        before = await play.balances()

        vouchers = [play.voucher(c, operator, 50 * TOKEN, 20 * TOKEN) for c in clients]
        await play.do(operator, "redeem", calls.redeem(vouchers))
        tree = await play.post(operator, 1, {nodes[0].address: 30 * TOKEN})
        await final(play, operator)
        await play.chain.pass_time(TERMS.stale_after_s)
        await play.do(clients[0], "declare_stale", calls.declare_stale(operator.address))

        # Left: 70 redeemed and un-rooted, and half the stake. Promised: more than twice of that.
        await play.do(nodes[0], "claim", calls.claim(operator.address, tree.leaf(nodes[0].address)))
        for node, cumulative in zip(nodes, (130, 200, 300), strict=True):
            promise = play.promise(operator, node, 9, cumulative * TOKEN)
            await play.do(node, "file_promise", calls.file_promise(*promise))
        await play.chain.pass_time(TERMS.collection_s)
        for node in nodes:
            claim = calls.claim_stale(operator.address, node.address)
            await play.do(nodes[0], "claim_stale", claim)
        for client in clients:
            await play.do(client, "request_exit", calls.request_exit(operator.address))
        await play.chain.pass_time(TERMS.exit_delay_s)
        for client in clients:
            await play.do(client, "exit", calls.exit(operator.address))

        after = await play.balances()
        gained = {name: after[name] - before[name] for name in after}
        assert [gained[f"node-{i}"] for i in range(3)] == [
            30 * TOKEN + 45 * TOKEN,
            90 * TOKEN,
            135 * TOKEN,
        ]
        assert [gained[f"client-{i}"] for i in range(5)] == [80 * TOKEN] * 5
        await play.do(nodes[1], "withdraw", calls.withdraw(BURN_ADDRESS))
        assert await play.token.balance(calls.address) == 0
