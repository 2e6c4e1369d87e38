"""JSON-RPC to a chain's node: one method, over httpx, under trio."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import httpx
import trio

from contracts.errors import BadConfigurationError, ChainUnreachableError, RpcError

# A node that has not answered in this time, to the last byte, has lost the request, or we the node.
CALL_TIMEOUT_S = 20.0
# The logs of 2,000 full blocks fit; anything longer is there to fill our memory.
ANSWER_BYTES_MAX = 32 * 2**20
# Every method that we use may be repeated: sending the same signed bytes twice is one transaction.
ATTEMPTS = 3
_PAUSE_S = 0.5
# A node's words are shown to people: a line of them, and nothing that moves a terminal's cursor.
_WORDS_MAX = 500
_QUANTITY = re.compile("0x[0-9a-fA-F]{1,64}")


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
            answer = json.loads(await self._post(request))
        except httpx.HTTPStatusError as error:
            raise ChainUnreachableError(
                f"the chain's node refused {method} with status {error.response.status_code}"
            ) from error
        except httpx.InvalidURL as error:
            raise BadConfigurationError(f"the URL of the chain's node: {error}") from error
        # Brackets without end recurse in the parser.
        except (httpx.HTTPError, ValueError, RecursionError) as error:
            raise ChainUnreachableError(
                f"no answer to {method} from the chain's node: {type(error).__name__}"
            ) from error
        if not isinstance(answer, dict) or answer.get("id") != request["id"]:
            raise ChainUnreachableError(f"the chain's node answered something else than {method}")
        if answer.get("error") is not None:
            raise _rpc_error(answer["error"])
        return answer.get("result")

    async def _post(self, request: Mapping[str, Any]) -> bytes:
        """The body of the answer. Its length is what arrives, whatever the headers say."""
        body = bytearray()
        with trio.move_on_after(CALL_TIMEOUT_S) as waiting:
            async with self._client.stream(
                "POST", self._url, json=request, timeout=CALL_TIMEOUT_S
            ) as response:
                response.raise_for_status()
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > ANSWER_BYTES_MAX:
                        # From inside, because leaving the loop would leave httpx's streams open.
                        waiting.cancel()
            return bytes(body)
        method = request["method"]
        raise ChainUnreachableError(
            f"the chain's node did not end its answer to {method} within "
            f"{CALL_TIMEOUT_S:.0f} s and {ANSWER_BYTES_MAX >> 20} MiB"
        )


def _rpc_error(error: Any) -> RpcError:
    body = error if isinstance(error, dict) else {}
    code, data = body.get("code"), body.get("data")
    if isinstance(data, dict):
        data = data.get("data")
    try:
        evidence = parse_hex(data) if isinstance(data, str) else b""
    except ChainUnreachableError:
        evidence = b""
    return RpcError(
        printable(str(body.get("message", error))),
        code=code if isinstance(code, int) else 0,
        data=evidence,
    )


def printable(words: str) -> str:
    """What a stranger wrote, on one line and without control characters."""
    return "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words[:_WORDS_MAX]
    )


def parse_hex(value: Any) -> bytes:
    """Raises ChainUnreachableError on anything else than 0x and whole bytes."""
    try:
        if not value.startswith("0x"):
            raise ValueError
        return bytes.fromhex(value[2:])
    except (AttributeError, TypeError, ValueError):
        raise nonsense("bytes", value) from None


def parse_quantity(value: Any) -> int:
    """Raises ChainUnreachableError on anything else than 0x and up to 64 hex digits."""
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise nonsense("a number", value)
    return int(value, 16)


def nonsense(expected: str, value: Any) -> ChainUnreachableError:
    """An answer that says nothing is no answer: the next one may."""
    return ChainUnreachableError(
        f"the chain's node answered {printable(repr(value))[:64]} where {expected} belongs"
    )
