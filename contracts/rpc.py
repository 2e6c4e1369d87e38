"""JSON-RPC to a chain's node: one method, over httpx, under trio."""

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import httpx
import trio

from contracts.errors import BadConfigurationError, ChainUnreachableError, RpcError

# A node that has not answered in this time has lost the request, or we have lost the node.
CALL_TIMEOUT_S = 20.0
# Every method that we use may be repeated: sending the same signed bytes twice is one transaction.
ATTEMPTS = 3
_PAUSE_S = 0.5


class Rpc(Protocol):
    """What the rest of the client needs of a chain. `FakeChain` is the other implementation."""

    async def call(self, method: str, *params: Any) -> Any:
        """The result. Raises RpcError, or ChainUnreachableError if there was no answer."""
        ...


class HttpRpc:
    """A chain's node at an http or https URL."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        if not url.startswith(("http://", "https://")):
            raise BadConfigurationError(f"{url!r} is not the URL of a chain's node")
        self._url = url
        self._client = client
        self._ids = itertools.count(1)

    async def call(self, method: str, *params: Any) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._call_once(method, params)
            except ChainUnreachableError:
                if attempt == ATTEMPTS:
                    raise
                await trio.sleep(_PAUSE_S * attempt)
        raise AssertionError("unreachable")

    async def _call_once(self, method: str, params: Sequence[Any]) -> Any:
        request = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        try:
            response = await self._client.post(self._url, json=request, timeout=CALL_TIMEOUT_S)
            response.raise_for_status()
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ChainUnreachableError(
                f"no answer to {method} from the chain's node: {type(error).__name__}"
            ) from error
        if not isinstance(answer, dict) or answer.get("id") != request["id"]:
            raise ChainUnreachableError(f"the chain's node answered something else than {method}")
        if "error" in answer:
            raise _rpc_error(answer["error"])
        return answer.get("result")


def _rpc_error(error: Any) -> RpcError:
    body = error if isinstance(error, dict) else {}
    data = body.get("data")
    if isinstance(data, dict):
        data = data.get("data")
    return RpcError(
        str(body.get("message", error))[:500],
        code=int(body.get("code", 0)),
        data=parse_hex(data) if isinstance(data, str) and data.startswith("0x") else b"",
    )


def parse_hex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def parse_quantity(text: str) -> int:
    return int(text, 16)
