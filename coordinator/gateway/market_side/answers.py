"""Where the gateway keeps answers that their clients may fetch again: a shelf by account and name.

`MemoryShelf` is for a gateway without a database, and forgets with its process; the coordinator's
own is durable.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from protocol.ids import JobId, PeerId

DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class ShelvedAnswer:
    """`data` is None while the answer is not there: it is being made, or its making was cut off."""

    request_digest: bytes
    job_id: JobId
    data: bytes | None


class AnswerShelf(Protocol):
    """Keeps answers sealed, and within bounds: the oldest go first."""

    async def claim(
        self, account: PeerId, name: str, request_digest: bytes, job_id: JobId, *, for_s: float
    ) -> ShelvedAnswer | None:
        """Take a name for an answer to come; or what has it already. The digest is a sha256."""
        ...

    async def put(self, account: PeerId, name: str, data: bytes, *, for_s: float) -> None:
        """The answer of a name that was claimed."""
        ...

    async def drop(self, account: PeerId, name: str) -> None:
        """Give a name free."""
        ...

    async def find(self, account: PeerId, name: str) -> ShelvedAnswer | None: ...


class MemoryShelf:
    """An `AnswerShelf` in memory."""

    def __init__(self, now_s: Callable[[], float], *, bytes_max: int) -> None:
        self._now_s = now_s
        self._bytes_max = bytes_max
        self._bytes = 0
        self._shelved: OrderedDict[tuple[PeerId, str], tuple[ShelvedAnswer, float]] = OrderedDict()

    async def claim(
        self, account: PeerId, name: str, request_digest: bytes, job_id: JobId, *, for_s: float
    ) -> ShelvedAnswer | None:
        assert len(request_digest) == DIGEST_BYTES, "the digest is a sha256"
        found = await self.find(account, name)
        if found is None:
            answer = ShelvedAnswer(request_digest, job_id, None)
            self._shelved[account, name] = (answer, self._now_s() + for_s)
        return found

    async def put(self, account: PeerId, name: str, data: bytes, *, for_s: float) -> None:
        found = await self.find(account, name)
        if found is not None:
            self._take(account, name)
            self._shelved[account, name] = (replace(found, data=data), self._now_s() + for_s)
            self._bytes += len(data)
            while self._bytes > self._bytes_max:
                self._take(*next(iter(self._shelved)))

    async def drop(self, account: PeerId, name: str) -> None:
        self._take(account, name)

    async def find(self, account: PeerId, name: str) -> ShelvedAnswer | None:
        found = self._shelved.get((account, name))
        if found is not None and found[1] <= self._now_s():
            self._take(account, name)
            return None
        return None if found is None else found[0]

    def _take(self, account: PeerId, name: str) -> None:
        found = self._shelved.pop((account, name), None)
        if found is not None:
            self._bytes -= len(found[0].data or b"")
