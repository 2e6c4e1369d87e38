"""The fake chain and a real one give the same answers, as far as a sender asks."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from contracts.errors import RpcError
from contracts.fake_chain import GWEI, FakeChain
from contracts.node import is_harmless
from contracts.rpc import Rpc, parse_quantity
from contracts.transaction import Transaction, transaction_hash
from contracts.units import parse_address
from tests.contracts.anvil import open_anvil, run_anvil
from tests.contracts.keys import make_key

KEY = make_key("sender")
Mine = Callable[[], Awaitable[None]]
Open = Callable[[], AbstractAsyncContextManager[tuple[Rpc, Mine]]]


@asynccontextmanager
async def fake() -> AsyncIterator[tuple[Rpc, Mine]]:
    chain = FakeChain()

    async def mine() -> None:
        chain.mine()

    yield chain, mine


@asynccontextmanager
async def real() -> AsyncIterator[tuple[Rpc, Mine]]:
    with run_anvil() as url:
        async with open_anvil(url) as chain:
            await chain.sender(KEY)
            await chain.call("evm_setAutomine", False)

            async def mine() -> None:
                await chain.call("evm_mine")

            yield chain, mine


def signed(nonce: int, chain_id: int, *, percent: int = 100, data: bytes = b"\1") -> bytes:
    """A transaction that pays so many hundredths of a usual fee."""
    to = parse_address("0x" + "11" * 20)
    tip_wei, fee_wei = GWEI * percent // 100, 4 * GWEI * percent // 100
    return Transaction(chain_id, nonce, tip_wei, fee_wei, 50_000, to, data).sign(KEY)


async def send(rpc: Rpc, raw: bytes) -> str:
    return str(await rpc.call("eth_sendRawTransaction", "0x" + raw.hex()))


async def count(rpc: Rpc) -> int:
    return parse_quantity(await rpc.call("eth_getTransactionCount", KEY.address, "latest"))


@pytest.mark.parametrize("chain", [fake, pytest.param(real, marks=pytest.mark.anvil)])
async def test_a_chain_takes_replaces_mines_and_refuses(chain: Open) -> None:
    async with chain() as (rpc, mine):
        chain_id = parse_quantity(await rpc.call("eth_chainId"))
        first = signed(0, chain_id)
        assert await rpc.call("eth_getTransactionReceipt", transaction_hash(first)) is None
        assert await send(rpc, first) == transaction_hash(first)
        await refused(rpc, first)
        await refused(rpc, signed(0, chain_id, data=b"\2"))
        dearer = signed(0, chain_id, percent=125)
        assert await send(rpc, dearer) == transaction_hash(dearer)
        assert await count(rpc) == 0
        assert await rpc.call("eth_getTransactionReceipt", transaction_hash(dearer)) is None

        await mine()
        assert await count(rpc) == 1
        assert await rpc.call("eth_getTransactionReceipt", transaction_hash(first)) is None
        receipt = await rpc.call("eth_getTransactionReceipt", transaction_hash(dearer))
        assert parse_quantity(receipt["status"]) == 1
        assert receipt["contractAddress"] is None
        assert receipt["logs"] == []
        head = await rpc.call("eth_blockNumber")
        assert parse_quantity(receipt["blockNumber"]) == parse_quantity(head)
        block = await rpc.call("eth_getBlockByNumber", head, False)
        assert block["hash"] == receipt["blockHash"]
        assert parse_quantity(block["baseFeePerGas"]) > 0
        beyond = hex(parse_quantity(head) + 1)
        assert await rpc.call("eth_getBlockByNumber", beyond, False) is None
        await refused(rpc, signed(0, chain_id, percent=200))

        # Two at once are mined in the order of their nonces, and not before the first is there.
        assert await send(rpc, signed(2, chain_id))
        await mine()
        assert await count(rpc) == 1
        assert await send(rpc, signed(1, chain_id))
        await mine()
        assert await count(rpc) == 3


async def refused(rpc: Rpc, raw: bytes) -> None:
    """By words that a sender knows to mean no harm."""
    with pytest.raises(RpcError) as caught:
        await send(rpc, raw)
    assert is_harmless(caught.value), str(caught.value)


async def test_the_fake_wants_a_tenth_more_as_most_nodes_do() -> None:
    """Anvil takes any higher fee, so this cannot be compared with it."""
    async with fake() as (rpc, _):
        await send(rpc, signed(0, FakeChain().chain_id))
        await refused(rpc, signed(0, FakeChain().chain_id, percent=109))
        await send(rpc, signed(0, FakeChain().chain_id, percent=110))


def test_an_error_that_means_harm_is_told_apart() -> None:
    assert not is_harmless(RpcError("insufficient funds for gas * price + value", code=-32000))
