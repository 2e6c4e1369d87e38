"""The ERC-20 token that a deployment settles in: calls, state, and EIP-2612 permits."""

from typing import Any

from contracts.abi import load_artifact
from contracts.chain import Call
from contracts.keccak import keccak
from contracts.rpc import Rpc
from contracts.units import Address
from contracts.views import ask

UNLIMITED = 2**256 - 1
_PERMIT = keccak(
    b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)


class Token:
    """Any ERC-20 token; `mint` and permits only where it has them."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.address = address
        self._rpc = rpc

    def approve(self, spender: Address, amount: int = UNLIMITED) -> Call:
        return self._call("approve", spender, amount)

    def mint(self, to: Address, amount: int) -> Call:
        """For the test token: tokens out of nothing."""
        return self._call("mint", to, amount)

    async def balance(self, account: Address) -> int:
        return int(await self._value("balanceOf", account))

    async def allowance(self, owner: Address, spender: Address) -> int:
        return int(await self._value("allowance", owner, spender))

    async def decimals(self) -> int:
        return int(await self._value("decimals"))

    def _call(self, function: str, *args: Any) -> Call:
        return Call(self.address, load_artifact("TestToken").encode(function, *args))

    async def _value(self, function: str, *args: Any) -> Any:
        return await ask(self._rpc, load_artifact("TestToken"), self.address, function, *args)
