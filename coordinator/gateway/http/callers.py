"""Who is calling: from the Authorization header to a Caller, through a small cache.

A key is looked up in the market at most once per TTL, so a revoked key works for at most that long.
Unknown keys are remembered too: a client with a wrong key tries it often. The cache knows keys by
their hash only; comparing them takes as long whatever they are.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from coordinator.gateway.caller import CALLER_TTL_S, Caller
from coordinator.gateway.errors import ApiError, error_of
from protocol.errors import Code

_CACHE_MAX = 10_000

# Ours have 51 characters; a much longer text is no key, and not worth hashing.
_SECRET_CHARS_MAX = 256

_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller | None
    expires_at: float


class Callers:
    """`authenticate` asks the market; `monotonic` is seconds on a clock that never goes back. If
    `needs_key` is false, the market says who callers without a key are."""

    def __init__(
        self,
        authenticate: Callable[[str], Awaitable[Caller | None]],
        *,
        monotonic: Callable[[], float],
        needs_key: bool = True,
    ) -> None:
        self._authenticate = authenticate
        self._monotonic = monotonic
        self._needs_key = needs_key
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._pending: dict[bytes, asyncio.Task[Caller | None]] = {}

    async def identify(self, authorization: str | None) -> Caller:
        """Raises ApiError (401)."""
        # Stock clients send some key or other, curl none.
        secret = _read_secret(authorization) if self._needs_key else ""
        name = hashlib.sha256(secret.encode()).digest()
        known = self._known.get(name)
        if known is None or known.expires_at <= self._monotonic():
            caller = await self._look_up(name, secret)
        else:
            caller = known.caller
        if caller is None:
            raise _unauthorized("this API key is unknown or was revoked")
        return caller

    async def _look_up(self, name: bytes, secret: str) -> Caller | None:
        """Ask once, however many requests of one key arrive together."""
        task = self._pending.get(name)
        if task is None:
            task = asyncio.ensure_future(self._ask(name, secret))
            self._pending[name] = task
            task.add_done_callback(lambda _: self._pending.pop(name))
        # Shielded: one request that is given up must not take the others' answer with it.
        return await asyncio.shield(task)

    async def _ask(self, name: bytes, secret: str) -> Caller | None:
        # Dated from the question: a key that is revoked meanwhile must not live longer for it.
        expires_at = self._monotonic() + CALLER_TTL_S
        caller = await self._authenticate(secret)
        self._known[name] = _Known(caller, expires_at)
        self._known.move_to_end(name)
        if len(self._known) > _CACHE_MAX:
            self._known.popitem(last=False)
        return caller


def _read_secret(authorization: str | None) -> str:
    if authorization is None:
        raise _unauthorized("give your API key in the header `Authorization: Bearer KEY`")
    secret = authorization[len(_SCHEME) :].strip()
    if not authorization.lower().startswith(_SCHEME) or not 0 < len(secret) <= _SECRET_CHARS_MAX:
        raise _unauthorized("the Authorization header is not of the form `Bearer KEY`")
    return secret


def _unauthorized(message: str) -> ApiError:
    return error_of(Code.UNKNOWN_API_KEY, message).but(headers=((b"www-authenticate", b"Bearer"),))
