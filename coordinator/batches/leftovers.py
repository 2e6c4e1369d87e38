"""Jobs of batches that an earlier process had under way when it was killed.

Their answers never came to us, and their lines run again. So the client's word is that it got
nothing of them: what a node then hands in is paid by that. A job whose answer is in a log was
answered: its node is paid by its receipt.
"""

from collections.abc import Container

import structlog

from coordinator.batches.services import CallerFinder
from coordinator.buyer.leaser import Leaser
from coordinator.db.engine import Connection, Database
from coordinator.db.jobs import find_jobs
from coordinator.db.leases import list_open_leases
from protocol.countersigning import Delivery
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import sha256_digest
from protocol.messages import JobRequest, Lease
from protocol.pricing import Units

log = structlog.get_logger(__name__)


async def disown_leftovers(
    database: Database,
    leaser: Leaser,
    callers: CallerFinder,
    answered: Container[str],
    *,
    now_ms: int,
) -> None:
    """Sign that nothing came of the open leases of batches that are not `answered`."""
    for lease, api_key_id in await database.read(_batch_leases):
        if lease.message.job_id in answered:
            continue
        caller = await callers.caller_of(api_key_id)
        if caller is None:
            continue  # its key was revoked: the hold runs out, or the receipt is paid
        try:
            await leaser.declare(seal(caller.signing_key, _nothing_of(lease, now_ms)))
        except RemoteProtocolError as error:
            # It was paid meanwhile, or its client has signed for it.
            log.info("leftover_not_disowned", job_id=lease.message.job_id, code=error.code)


def _batch_leases(conn: Connection) -> list[tuple[Signed[Lease], str]]:
    """The open leases of batches, each with the API key that pays for it."""
    found = []
    for row in list_open_leases(conn):
        if row.terms.api_key_id is None or row.delivery is not None:
            continue
        lease = open_envelope(row.envelope, Lease)
        for job in find_jobs(conn, lease.message.job_id):
            asked = open_envelope(job.request, JobRequest).message
            if asked.is_batch and asked.client == lease.message.client:
                found.append((lease, row.terms.api_key_id))
    return found


def _nothing_of(lease: Signed[Lease], now_ms: int) -> Delivery:
    return Delivery(
        lease_id=lease.message.lease_id,
        lease_digest=lease.digest,
        client=lease.message.client,
        units=Units(),
        output_digest=sha256_digest(b""),
        code=Code.CANCELLED,
        issued_at_ms=now_ms,
    )
