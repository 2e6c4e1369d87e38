"""Answers that clients of the gateway may fetch again: sealed with the coordinator's key, in its
books, so that they outlive a restart and a copy of the database shows nothing."""

import structlog
import trio

from coordinator.db.engine import Database
from coordinator.db.kept_answers import (
    SWEEP_MAX,
    KeptBounds,
    StoredAnswer,
    claim_answer,
    drop_answer,
    expire_answers,
    find_answer,
    store_answer,
)
from coordinator.errors import CoordinatorError
from coordinator.gateway.market_side.answers import ShelvedAnswer
from coordinator.vault import Seal
from protocol.clock import Clock, Entropy
from protocol.ids import JobId, PeerId
from protocol.keys import SigningKey
from protocol.limits import MIB

log = structlog.get_logger(__name__)

_PURPOSE = b"capacloud kept answers 1"

# They are kept for hours, and to look for those that are over reads all of them.
SWEEP_EVERY_S = 30.0

# A day of one account's requests at one a second would be more, but such an account does not repeat
# what it asked a day ago. The bytes are of the size of the books themselves.
BOUNDS = KeptBounds(
    account_entries=10_000, account_bytes=256 * MIB, entries=100_000, bytes=1_024 * MIB
)


class DurableShelf:
    """An `AnswerShelf` in the coordinator's database."""

    def __init__(
        self,
        key: SigningKey,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        bounds: KeptBounds = BOUNDS,
    ) -> None:
        self._seal = Seal(key, _PURPOSE)
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._bounds = bounds

    async def claim(
        self, account: PeerId, name: str, request_digest: bytes, job_id: JobId, *, for_s: float
    ) -> ShelvedAnswer | None:
        """Durable when it returns: a restart knows that something was bought. Raises StorageError
        and its kin."""
        now_ms = self._clock.now_ms()
        found = await self._database.write(
            claim_answer,
            account,
            name,
            request_digest,
            job_id,
            now_ms=now_ms,
            expires_at_ms=now_ms + int(1_000 * for_s),
            bounds=self._bounds,
        )
        return self._opened(account, name, found)

    async def put(self, account: PeerId, name: str, data: bytes, *, for_s: float) -> None:
        sealed = self._seal.close(data, _context(account, name), self._entropy)
        expires_at_ms = self._clock.now_ms() + int(1_000 * for_s)
        await self._database.write(
            store_answer, account, name, sealed, expires_at_ms=expires_at_ms, bounds=self._bounds
        )

    async def drop(self, account: PeerId, name: str) -> None:
        await self._database.write(drop_answer, account, name)

    async def find(self, account: PeerId, name: str) -> ShelvedAnswer | None:
        now_ms = self._clock.now_ms()
        found = await self._database.read(find_answer, account, name, now_ms=now_ms)
        return self._opened(account, name, found)

    async def sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_EVERY_S)
            try:
                while await self.sweep() == SWEEP_MAX:
                    pass
            except CoordinatorError as error:
                # What is over stays over until the database is mended.
                log.error("kept_answers_not_swept", error=str(error))

    async def sweep(self) -> int:
        """Delete some of what is over. Returns how many that were."""
        now_ms = self._clock.now_ms()
        return await self._database.write(expire_answers, now_ms=now_ms, bounds=self._bounds)

    def _opened(
        self, account: PeerId, name: str, stored: StoredAnswer | None
    ) -> ShelvedAnswer | None:
        if stored is None:
            return None
        data = None
        if stored.sealed is not None:
            # Sealed by a key that is gone: as good as not there, and never another one's answer.
            data = self._seal.open(stored.sealed, _context(account, name))
        return ShelvedAnswer(stored.request_digest, stored.job_id, data)


def _context(account: PeerId, name: str) -> bytes:
    return f"{account}/{name}".encode()
