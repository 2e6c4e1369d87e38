"""A chain in memory that is slow, forgetful and indecisive on demand: for tests of senders.

It honours the part of JSON-RPC that `Sender` uses. Blocks are made by `mine`; contracts are
callables.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from contracts.errors import ChainUnreachableError, RpcError
from contracts.keccak import keccak
from contracts.rpc import parse_hex, parse_quantity
from contracts.transaction import parse_transaction, transaction_hash

GWEI = 10**9
# Nodes refuse a replacement that raises the fees by less.
_REPLACE_PERCENT = 110


@dataclass(frozen=True, slots=True)
class FakeTransaction:
    hash: str
    sender: str
    nonce: int
    fee_wei: int
    to: str
    data: bytes


@dataclass
class FakeBlock:
    hash: str
    transactions: list[FakeTransaction] = field(default_factory=list)


class FakeChain:
    """Implements `contracts.rpc.Rpc`. Set its public fields to make trouble."""

    def __init__(self, *, chain_id: int = 1337) -> None:
        self.chain_id = chain_id
        self.base_fee_wei = GWEI
        self.delay_s = 0.0
        # The outcome of the next calls of a method, oldest first: see `fail`.
        self._faults: dict[str, deque[str]] = {}
        # What a call to an address answers; it raises RpcError to revert.
        self.contracts: dict[str, Callable[[bytes], bytes]] = {}
        # Counts reorganisations, so that a replaced block gets another hash.
        self._fork = 0
        self.blocks = [FakeBlock(self._block_hash(0))]
        self.pool: dict[tuple[str, int], FakeTransaction] = {}
        # Hashes of what a contract refused when its turn came.
        self._refused: set[str] = set()

    def fail(self, method: str, *kinds: str) -> None:
        """`lost`: not done, no answer. `mute`: done, no answer. `forget`: answered, dropped."""
        self._faults.setdefault(method, deque()).extend(kinds)

    async def call(self, method: str, *params: Any) -> Any:
        await trio.sleep(self.delay_s)
        faults = self._faults.get(method)
        fault = faults.popleft() if faults else ""
        if fault == "lost":
            raise ChainUnreachableError(f"no answer to {method}")
        answer = getattr(self, f"_{method}")(*params)
        if fault == "forget":
            self.pool.clear()
        if fault == "mute":
            raise ChainUnreachableError(f"no answer to {method}")
        return answer

    def mine(self, blocks: int = 1) -> None:
        """Put what pays enough and whose turn it is into the next block, then add empty ones."""
        for _ in range(blocks):
            block = FakeBlock(self._block_hash(len(self.blocks)))
            self.blocks.append(block)
            for key in sorted(self.pool):
                sender, nonce = key
                waiting = self.pool[key]
                if waiting.fee_wei >= self.base_fee_wei and nonce == self._mined_count(sender):
                    block.transactions.append(self.pool.pop(key))
                    self._execute(waiting)

    def reorganise(self, depth: int, *, keep: bool = True) -> None:
        """Replace the last blocks by empty ones; what was in them waits again, or is forgotten."""
        dropped = self.blocks[-depth:]
        del self.blocks[-depth:]
        self._fork += 1
        for block in dropped:
            self.blocks.append(FakeBlock(self._block_hash(len(self.blocks))))
            if keep:
                self.pool |= {(t.sender, t.nonce): t for t in block.transactions}

    def mined(self) -> list[FakeTransaction]:
        return [item for block in self.blocks for item in block.transactions]

    def _execute(self, item: FakeTransaction) -> None:
        contract = self.contracts.get(item.to)
        self._refused.discard(item.hash)
        if contract is not None:
            try:
                contract(item.data)
            except RpcError:
                self._refused.add(item.hash)

    def _block_hash(self, number: int) -> str:
        return "0x" + keccak(f"{self._fork}/{number}".encode()).hex()

    def _mined_count(self, sender: str) -> int:
        return sum(1 for item in self.mined() if item.sender == sender)

    def _eth_chainId(self) -> str:
        return hex(self.chain_id)

    def _eth_blockNumber(self) -> str:
        return hex(len(self.blocks) - 1)

    def _eth_getTransactionCount(self, address: str, _: str) -> str:
        return hex(self._mined_count(address))

    def _eth_maxPriorityFeePerGas(self) -> str:
        return hex(GWEI // 10)

    def _eth_estimateGas(self, call: dict[str, str], _: str) -> str:
        self._eth_call(call, "pending")
        return hex(100_000)

    def _eth_call(self, call: dict[str, str], _: str) -> str:
        contract = self.contracts.get(call.get("to", ""))
        return "0x" + (contract(parse_hex(call["data"])).hex() if contract else "")

    def _eth_getBlockByNumber(self, number: str, _: bool) -> dict[str, Any] | None:
        height = len(self.blocks) - 1 if number == "latest" else parse_quantity(number)
        if height >= len(self.blocks):
            return None
        return {
            "number": hex(height),
            "hash": self.blocks[height].hash,
            "baseFeePerGas": hex(self.base_fee_wei),
        }

    def _eth_sendRawTransaction(self, raw: str) -> str:
        item = _parse_transaction(parse_hex(raw))
        if any(known.hash == item.hash for known in [*self.mined(), *self.pool.values()]):
            raise RpcError("already known", code=-32000)
        if item.nonce < self._mined_count(item.sender):
            raise RpcError("nonce too low", code=-32000)
        rival = self.pool.get((item.sender, item.nonce))
        if rival is not None and item.fee_wei * 100 < rival.fee_wei * _REPLACE_PERCENT:
            raise RpcError("replacement transaction underpriced", code=-32000)
        self.pool[item.sender, item.nonce] = item
        return item.hash

    def _eth_getTransactionReceipt(self, wanted: str) -> dict[str, Any] | None:
        for height, block in enumerate(self.blocks):
            for item in block.transactions:
                if item.hash == wanted:
                    status = "0x0" if wanted in self._refused else "0x1"
                    return _receipt(item, height, block.hash) | {"status": status}
        return None


def _parse_transaction(raw: bytes) -> FakeTransaction:
    item, sender = parse_transaction(raw)
    to = item.to or ""
    return FakeTransaction(transaction_hash(raw), sender, item.nonce, item.fee_wei, to, item.data)


def _receipt(item: FakeTransaction, height: int, block_hash: str) -> dict[str, Any]:
    return {
        "transactionHash": item.hash,
        "blockNumber": hex(height),
        "blockHash": block_hash,
        "gasUsed": hex(21_000),
        "contractAddress": None,
        "logs": [],
    }
