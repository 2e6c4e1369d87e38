"""Asking a contract for a value: a call that changes nothing and costs nothing."""

from typing import Any

from eth_abi.exceptions import DecodingError

from contracts.abi import Artifact, revert_reason
from contracts.errors import RevertedError, RpcError
from contracts.rpc import Rpc, parse_hex
from contracts.units import Address


async def ask(
    rpc: Rpc, artifact: Artifact, address: Address, function: str, *args: Any, block: str = "latest"
) -> Any:
    """What a function without side effects answers in `block` (a tag or a hex number).

    Raises RevertedError if the contract refuses, or if another one stands at the address.
    """
    request = {"to": address, "data": "0x" + artifact.encode(function, *args).hex()}
    try:
        answer = parse_hex(await rpc.call("eth_call", request, block))
        return artifact.decode_result(function, answer)[0]
    except RpcError as error:
        raise RevertedError(revert_reason(error)) from error
    except (DecodingError, OverflowError) as error:
        raise RevertedError(f"what is at {address} does not answer to {function}()") from error
