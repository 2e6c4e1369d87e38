"""Signs the head of the ledger's hash chain now and then, so that damage before it is noticed."""

from itertools import count

import structlog
import trio

from coordinator.db.engine import Database
from coordinator.db.heads import store_head
from coordinator.errors import StorageError
from protocol.clock import Clock
from protocol.keys import SigningKey

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 2.0
# At the latest after so many transfers, or so many looks (a minute): what comes after a head is
# read again at the next start.
TRANSFERS_MAX = 1_000
LOOKS_MAX = 30


async def sign_heads_forever(database: Database, key: SigningKey, clock: Clock) -> None:
    for look in count(1):
        await trio.sleep(LOOK_EVERY_S)
        every = 1 if look % LOOKS_MAX == 0 else TRANSFERS_MAX
        try:
            await database.write(store_head, key, now_ms=clock.now_ms(), every=every)
        except StorageError as error:
            log.error("head_not_signed", error=str(error))
