"""A chain's node that lies, stalls or rambles is refused by name, and never with a traceback."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from eth_abi.abi import encode
from trio.testing import MockClock

from contracts.abi import revert_reason
from contracts.erc20 import Token
from contracts.errors import (
    BadConfigurationError,
    ChainUnreachableError,
    RevertedError,
    RpcError,
    SettlementError,
)
from contracts.keccak import keccak
from contracts.receipts import Log, parse_receipt
from contracts.rpc import ANSWER_BYTES_MAX, HttpRpc, parse_hex, parse_quantity
from contracts.settlement import SettlementReader, decode_events
from contracts.units import address_from_bytes

URL = "http://node.invalid/"
CONTRACT, STRANGER = (address_from_bytes(bytes([n]) * 20) for n in (1, 2))
HASH = "0x" + "ab" * 32
RECEIPT: dict[str, Any] = {
    "transactionHash": HASH,
    "blockNumber": "0x5",
    "blockHash": HASH,
    "status": "0x1",
    "gasUsed": "0x5208",
    "contractAddress": None,
    "logs": [],
}

Answer = Callable[[httpx.Request], httpx.Response]


def rpc_of(answer: Answer) -> AbstractAsyncContextManager[HttpRpc]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[HttpRpc]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            yield HttpRpc(URL, client)

    return opened()


def saying(**fields: Any) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        body = {"jsonrpc": "2.0", "id": json.loads(request.content)["id"]} | fields
        return httpx.Response(200, json=body)

    return answer


class Drip(httpx.AsyncByteStream):
    """A byte every second, for ever: no pause is ever long enough to be a timeout of its own."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await trio.sleep(1)
            yield b" "


class Flood(httpx.AsyncByteStream):
    def __init__(self) -> None:
        self.sent = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await trio.lowlevel.checkpoint()
            self.sent += 2**20
            yield b" " * 2**20


async def test_an_answer_that_never_ends_is_given_up(autojump_clock: MockClock) -> None:
    async with rpc_of(lambda _: httpx.Response(200, stream=Drip())) as rpc:
        with trio.fail_after(100), pytest.raises(ChainUnreachableError, match="did not end"):
            await rpc.call("eth_chainId")


async def test_an_answer_that_is_too_long_is_not_kept(autojump_clock: MockClock) -> None:
    floods: list[Flood] = []

    def answer(_: httpx.Request) -> httpx.Response:
        floods.append(Flood())
        return httpx.Response(200, stream=floods[-1])

    async with rpc_of(answer) as rpc:
        with pytest.raises(ChainUnreachableError, match="did not end"):
            await rpc.call("eth_chainId")
    assert floods
    assert all(flood.sent <= ANSWER_BYTES_MAX + 2**20 for flood in floods)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"[" * 200_000, b'{"id": 99}', b"\xff", b"null"]
)
async def test_what_is_no_answer_is_unreachable(body: bytes, autojump_clock: MockClock) -> None:
    async with rpc_of(lambda _: httpx.Response(200, content=body)) as rpc:
        with pytest.raises(ChainUnreachableError):
            await rpc.call("eth_chainId")


async def test_a_status_is_told(autojump_clock: MockClock) -> None:
    async with rpc_of(lambda _: httpx.Response(429)) as rpc:
        with pytest.raises(ChainUnreachableError, match="status 429"):
            await rpc.call("eth_chainId")


async def test_an_url_that_is_none_is_a_setting_to_correct() -> None:
    async with httpx.AsyncClient() as client:
        with pytest.raises(BadConfigurationError, match="URL"):
            await HttpRpc("http://node:port/", client).call("eth_chainId")


@pytest.mark.parametrize(
    "error",
    [
        "plain words",
        {"code": "x", "message": None, "data": "0xzz"},
        {"code": 3, "message": "m", "data": {"data": 5}},
        {"message": "\x1b[2Jcleared\r\n" + "x" * 10_000},
        7,
    ],
)
async def test_an_error_of_any_form_is_an_error_that_can_be_shown(error: Any) -> None:
    async with rpc_of(saying(error=error)) as rpc:
        with pytest.raises(RpcError) as caught:
            await rpc.call("eth_chainId")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 500


async def test_an_error_of_null_is_none() -> None:
    """As some nodes write it next to every result."""
    async with rpc_of(saying(result="0x1", error=None)) as rpc:
        assert await rpc.call("eth_chainId") == "0x1"


@pytest.mark.parametrize(
    "value", [None, 5, "", "0x", "5", "-0x1", "0x-1", " 0x1", "0x1_0", "0x" + "f" * 65, {}, ["0x1"]]
)
def test_only_a_quantity_is_a_number(value: Any) -> None:
    with pytest.raises(ChainUnreachableError, match="a number"):
        parse_quantity(value)


@pytest.mark.parametrize("value", [None, 5, "", "ff", "0xf", "0xzz", [], {}])
def test_only_hex_is_bytes(value: Any) -> None:
    with pytest.raises(ChainUnreachableError, match="bytes"):
        parse_hex(value)


def test_only_a_receipt_is_a_receipt() -> None:
    assert parse_receipt(RECEIPT).succeeded
    for wrong in [
        None,
        "text",
        {},
        *({key: value for key, value in RECEIPT.items() if key != name} for name in RECEIPT),
        RECEIPT | {"logs": 5},
        RECEIPT | {"logs": [{}]},
        RECEIPT | {"status": None},
        RECEIPT | {"contractAddress": "0x12"},
        RECEIPT | {"transactionHash": "\x1b[2J"},
    ]:
        if wrong == {key: value for key, value in RECEIPT.items() if key != "contractAddress"}:
            continue  # Nodes leave it out where nothing was created.
        with pytest.raises(ChainUnreachableError):
            parse_receipt(wrong)


@pytest.mark.parametrize("tail", [b"", b"\xff" * 64, encode(["uint256", "uint256"], [32, 2**255])])
def test_a_reason_of_any_bytes_is_an_error_that_can_be_shown(tail: bytes) -> None:
    error = RpcError("reverted", code=3, data=bytes.fromhex("08c379a0") + tail)
    assert revert_reason(error) == "reverted"


def test_a_reason_does_not_reach_the_terminals_control() -> None:
    tail = encode(["string"], ["no\x1b[2J"])
    error = RpcError("reverted", code=3, data=bytes.fromhex("08c379a0") + tail)
    assert revert_reason(error).isprintable()


@pytest.mark.parametrize("result", [None, 7, "0x", "0x00", "0x" + "ff" * 40, "x", [], {}])
async def test_what_is_no_settlement_contract_is_said_to_be_none(result: Any) -> None:
    async with rpc_of(saying(result=result)) as rpc:
        for question in (
            SettlementReader(rpc, CONTRACT).terms(),
            SettlementReader(rpc, CONTRACT).token(),
            SettlementReader(rpc, CONTRACT).operator(STRANGER),
            Token(rpc, CONTRACT).decimals(),
        ):
            with pytest.raises((RevertedError, ChainUnreachableError)):
                await question


@pytest.mark.parametrize("result", [None, 5, {}, "0x", [5], [{}]])
async def test_events_that_are_none_are_refused(result: Any) -> None:
    async with rpc_of(saying(result=result)) as rpc:
        with pytest.raises(SettlementError):
            await SettlementReader(rpc, CONTRACT).events(1, 2)


def test_a_strangers_log_with_our_topic_is_left_out() -> None:
    """A token or a wallet in the same transaction may log what it likes."""
    topic = keccak(b"Claimed(address,address,uint256,uint256)")
    topics = (topic, bytes(32), b"\xff" * 32)
    assert not decode_events([Log(STRANGER, topics, b"", 0, 0, HASH)], CONTRACT)
    with pytest.raises(ChainUnreachableError, match="an event"):
        decode_events([Log(CONTRACT, topics, b"", 0, 0, HASH)], CONTRACT)
