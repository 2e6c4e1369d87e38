"""The last words of a job: a durable receipt, its way to the client, the client's acceptance."""

import structlog
import trio

from capanode.errors import OutboxError
from capanode.jobs.ending import JobEnding
from capanode.outbox import Outbox, Pending
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.messages import Receipt
from protocol.net.channels import Channel
from protocol.net.errors import NetError
from protocol.node_session import Accepted, NodeJob

log = structlog.get_logger(__name__)

# A client countersigns within a round trip; its channel is not held open for longer than this.
ACCEPTANCE_WITHIN_S = 5.0
# After the drain's deadline jobs are cut: signing and one durable write need no more than this.
CUT_WITHIN_S = 5.0


async def wait_durable(pending: Pending) -> None:
    """Shielded, because a signed receipt must not depend on how the node stops."""
    with trio.move_on_after(CUT_WITHIN_S) as scope:
        scope.shield = True
        try:
            await pending.wait()
        except OutboxError as error:
            # The work is done; the client can still hand the receipt in for us.
            log.error("receipt_not_durable", error=str(error))


def send_last_word(
    channel: Channel, job: NodeJob, ending: JobEnding, receipt: Signed[Receipt] | None
) -> bool:
    """The receipt, or the error with it; False if the client is gone."""
    if receipt is not None and not ending.is_failure:
        frame = job.receipt(receipt)
    else:
        frame = job.error(
            ending.code or Code.INTERNAL,
            ending.public_message,
            receipt=receipt,
            retry_after_ms=ending.retry_after_ms,
        )
    try:
        channel.send_nowait(*frame)
    except NetError as error:
        log.info("receipt_not_sent", error=str(error))
        return False
    return True


async def wait_acceptance(channel: Channel, job: NodeJob, outbox: Outbox) -> None:
    """The client's countersignature goes into the outbox beside the receipt."""
    terms = job.terms
    assert terms is not None, "only an opened job has a receipt"
    with trio.move_on_after(ACCEPTANCE_WITHIN_S):
        try:
            while True:
                frame = await channel.receive()
                event = job.receive(frame.type, frame.body)
                if isinstance(event, Accepted):
                    outbox.attach_nowait(
                        event.acceptance, coordinator=terms.lease.message.coordinator
                    )
                    return
        except NetError:
            return
        except RemoteProtocolError as error:
            log.info("acceptance_refused", peer=channel.peer, code=error.code)
