"""From a receipt to a payment: when. How much is in `verdicts`, in which transfers in `payments`.

- A receipt whose verdict is certain is paid at once.
- A lone receipt, without its client's word, is stored and waits until the job cannot run any more
  (`OpenLease.lone_receipt_due_ms`). If client and node agree meanwhile, their receipt replaces it;
  another lone receipt does not.
- A receipt that comes after its hold has timed out is refused: that money is the client's again.
  One that had come before is paid whenever its turn is, and after an outage of ours nodes have the
  time to hand in what they could not.

A receipt is acknowledged when it is durable, and repeating it changes nothing.
"""

from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

import structlog
import trio

from coordinator.db.engine import Connection, Database
from coordinator.db.leases import find_lease
from coordinator.db.receipts import find_receipt, record_receipt
from coordinator.errors import CoordinatorError
from coordinator.leasing.open_lease import Opening, OpenLease
from coordinator.leasing.registry import LeaseRegistry, Settlement
from coordinator.settling.payments import TOO_LATE, Payments
from coordinator.settling.verdicts import Verdict, judge
from coordinator.settling.words import beginning_of, observation_of, word_of
from protocol.clock import Clock
from protocol.countersigning import Delivery, check_delivery
from protocol.endings import FINISH_RULES, ReceiptState
from protocol.envelope import Signed, open_envelope
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import LeaseId
from protocol.messages import Acceptance, Receipt
from protocol.pricing import Units
from protocol.receipts import check_acceptance, check_receipt
from protocol.services import SettleReply

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Client and node both hand a receipt in, the second within seconds: this many are remembered, so
# that it costs neither signatures nor queries. A kilobyte each.
REMEMBERED_MAX = 1_024
# One sweep's worth of receipts whose clients stayed silent.
SWEEP_MAX = 500


class ReceiptService:
    """Takes receipts from clients and nodes, and turns them into captures."""

    def __init__(
        self,
        database: Database,
        leases: LeaseRegistry,
        payments: Payments,
        *,
        clock: Clock,
        sweep_max: int = SWEEP_MAX,
        remembered_max: int = REMEMBERED_MAX,
    ) -> None:
        self._sweep_max = sweep_max
        self._remembered_max = remembered_max
        self._database = database
        self._leases = leases
        self._payments = payments
        self._clock = clock
        # By the SHA-256 of the receipt's bytes as signed, which are thousands; the oldest first.
        self._settled: dict[bytes, SettleReply] = {}
        # Those that are being accepted now, with who waits for that.
        self._under_way: dict[bytes, trio.Event] = {}

    async def recall(self, raw: bytes) -> SettleReply | None:
        """What was paid on a receipt that was settled lately, if these are its very bytes. One that
        is being accepted is waited for: client and node hand it in within the same milliseconds,
        and every second job would be posted twice."""
        while (under_way := self._under_way.get(raw)) is not None:
            await under_way.wait()
        return self._settled.get(sha256(raw).digest())

    async def accept(
        self, receipt: Signed[Receipt], acceptance: Signed[Acceptance] | None
    ) -> SettleReply:
        """Make the receipt durable, and pay it if its time has come.

        Raises RemoteProtocolError: NOT_FOUND (no such lease), the codes of `check_receipt` and
        `check_acceptance`, EXPIRED (the hold is gone), or why storage failed.
        """
        # Before anything is compared: a digest is of the words alone, for every signer.
        if receipt.signer != receipt.message.node:
            raise RemoteProtocolError(
                "the receipt is not signed by the node that it names", code=Code.WRONG_SIGNER
            )
        settled = await self.recall(receipt.raw)
        done = self._under_way[receipt.raw] = trio.Event()
        try:
            return await self._accept(receipt, acceptance, settled)
        finally:
            del self._under_way[receipt.raw]
            done.set()

    async def _accept(
        self,
        receipt: Signed[Receipt],
        acceptance: Signed[Acceptance] | None,
        settled: SettleReply | None,
    ) -> SettleReply:
        lease_id = receipt.message.lease_id
        opened = self._leases.get(lease_id)
        if settled is None and opened is None:
            settled = await self._accept_again(receipt, lease_id)
        if settled is not None:
            self._take_late_word(receipt, acceptance)
            return settled
        assert opened is not None, "what was said of a lease that has ended is settled or refused"
        check_receipt(receipt, opened.lease)
        if acceptance is not None:
            check_acceptance(acceptance, receipt)
        now_ms = self._clock.now_ms()
        if not opened.is_payable(now_ms):
            raise RemoteProtocolError(TOO_LATE, code=Code.EXPIRED)
        if acceptance is None and opened.has_receipt:
            await self._check_same(receipt, lease_id)
        is_due = opened.lone_receipt_due_ms <= now_ms
        return await self._store(receipt, acceptance, opened, is_due=is_due)

    async def sweep(self) -> int:
        """Pay the lone receipts that are due, at most `sweep_max`. Returns how many were paid; call
        again if it was that many."""
        now_ms = self._clock.now_ms()
        due = [
            opened
            for opened in self._leases
            if opened.has_receipt and opened.lone_receipt_due_ms <= now_ms
        ]
        paid = 0
        for opened in due[: self._sweep_max]:
            paid += await self._pay_stored(opened)
        return paid

    async def declare(self, delivery: Signed[Delivery]) -> None:
        """Make durable what a client got of a job that ended without a receipt for it; a receipt
        that waits for the client's word is paid by this one.

        Raises RemoteProtocolError: NOT_FOUND (no such lease), the codes of `check_delivery`,
        ALREADY_EXISTS (the client has said something else), EXPIRED (the lease has ended), or why
        storage failed.
        """
        said = delivery.message
        opened = self._leases.get(said.lease_id)
        if opened is None:
            await self._declare_again(delivery)
            return
        check_delivery(delivery, opened.lease)
        if opened.delivered not in (None, said.units):
            raise RemoteProtocolError(
                "this client has signed for another delivery of this lease",
                code=Code.ALREADY_EXISTS,
            )
        await self._payments.store_delivery(opened, delivery)
        self._leases.bound(opened, said)
        if opened.has_receipt:
            await self._pay_stored(opened)
        elif opened.opening is Opening.NEVER or _is_free(opened, said):
            await self._release(opened)

    async def expire(self) -> int:
        """Give back the holds whose time is over. Returns how many; call again if many."""
        by_hold = self._leases.by_hold()
        expired = await self._payments.expire(by_hold)
        for pending in expired:
            opened = by_hold.get(pending.id)
            if opened is not None:
                self._leases.expire(opened)
                granted = opened.lease.message
                log.info("hold_expired", job_id=granted.job_id, lease_id=granted.lease_id)
        return len(expired)

    async def release_unopened(self) -> int:
        """Give back the seats of leases that can be opened no more, and the holds of those that
        their nodes, which are here, have not reported. Returns how many holds."""
        released = 0
        for opened in self._leases.give_up_unopened(self._clock.now_ms()):
            released += await self._release(opened)
        return released

    async def _release(self, opened: OpenLease) -> bool:
        """Give back the hold of a lease that costs nothing. If that fails it expires."""
        granted = opened.lease.message
        try:
            await self._payments.release(opened)
        except RemoteProtocolError as error:
            log.warning("hold_not_released", lease_id=granted.lease_id, code=error.code)
            return False
        self._leases.end(opened)
        log.info("lease_released", job_id=granted.job_id, lease_id=granted.lease_id)
        return True

    async def _store(
        self,
        receipt: Signed[Receipt],
        acceptance: Signed[Acceptance] | None,
        opened: OpenLease,
        *,
        is_due: bool,
    ) -> SettleReply:
        billed = receipt.message
        word = word_of(receipt, acceptance, opened)
        verdict = judge(billed, opened.lease.message, word, is_due=is_due)
        row = record_receipt(
            receipt,
            acceptance,
            state=verdict.state,
            amount_nano=billed.amount_nano if verdict.amount_nano is None else verdict.amount_nano,
            now_ms=self._clock.now_ms(),
        )
        if verdict.amount_nano is None:
            await self._payments.store(row)
            self._leases.note_receipt(opened)
            return SettleReply(verdict.state, billed.amount_nano)
        is_lone = acceptance is None
        await self._payments.pay(opened, billed, verdict.amount_nano, row, is_lone=is_lone)
        share_nano = self._payments.share_nano(verdict.amount_nano)
        reply = SettleReply(verdict.state, verdict.amount_nano, share_nano)
        self._remember(receipt.raw, reply)
        self._close(opened, receipt, verdict, has_accepted=acceptance is not None)
        return reply

    async def _pay_stored(self, opened: OpenLease) -> bool:
        """Pay a receipt that was stored and has waited. Returns whether it was paid now."""
        lease_id = opened.lease.message.lease_id
        stored = await self._read(find_receipt, lease_id)
        if stored is None or self._leases.get(lease_id) is not opened:
            return False  # It was paid between our look at the registry and now.
        receipt = open_envelope(stored.receipt, Receipt)
        try:
            await self._store(receipt, None, opened, is_due=True)
        except RemoteProtocolError as error:
            log.warning(
                "receipt_not_paid", job_id=stored.job_id, lease_id=lease_id, code=error.code
            )
            return False
        return True

    async def _declare_again(self, delivery: Signed[Delivery]) -> None:
        """A word on a lease that is not open: one that we have, or one that comes too late."""
        stored = await self._read(find_lease, delivery.message.lease_id)
        if stored is None:
            raise RemoteProtocolError("there is no such lease", code=Code.NOT_FOUND)
        if stored.delivery != delivery.raw:
            raise RemoteProtocolError("the lease has ended", code=Code.EXPIRED)

    def _take_late_word(
        self, receipt: Signed[Receipt], acceptance: Signed[Acceptance] | None
    ) -> None:
        """Of a client that could not say before that it agrees. Raises RemoteProtocolError."""
        if acceptance is not None:
            check_acceptance(acceptance, receipt)
            if acceptance.message.agrees:
                self._leases.note_late_word(receipt.message.lease_id)

    async def _accept_again(self, receipt: Signed[Receipt], lease_id: LeaseId) -> SettleReply:
        """A receipt for a lease that is not open: one that we have, or one that comes too late."""
        stored = await self._read(find_receipt, lease_id)
        lease = await self._read(find_lease, lease_id)
        if lease is None:
            raise RemoteProtocolError("there is no such lease", code=Code.NOT_FOUND)
        # Pending, although its lease has ended: only another program can have expired the hold.
        # Nothing is left to wait for, and the node must not ask for ever.
        if stored is None or stored.state is ReceiptState.PENDING:
            raise RemoteProtocolError(TOO_LATE, code=Code.EXPIRED)
        # By digest: the same signed words may come in other wrapping.
        if open_envelope(stored.receipt, Receipt).digest != receipt.digest:
            raise RemoteProtocolError(
                "another receipt for this lease was paid", code=Code.RECEIPT_MISMATCH
            )
        share_nano = self._payments.share_nano(stored.amount_nano)
        return SettleReply(stored.state, stored.amount_nano, share_nano)

    async def _read(self, query: Callable[[Connection, LeaseId], T], lease_id: LeaseId) -> T:
        try:
            return await self._database.read(query, lease_id)
        except CoordinatorError as error:
            raise RemoteProtocolError(str(error), code=error.code) from error

    def _remember(self, raw: bytes, reply: SettleReply) -> None:
        self._settled[sha256(raw).digest()] = reply
        if len(self._settled) > self._remembered_max:
            del self._settled[next(iter(self._settled))]

    async def _check_same(self, receipt: Signed[Receipt], lease_id: LeaseId) -> None:
        """While a lone receipt waits, another one of its node is not taken in its place."""
        stored = await self._read(find_receipt, lease_id)
        if stored is not None and open_envelope(stored.receipt, Receipt).digest != receipt.digest:
            raise RemoteProtocolError(
                "another receipt for this lease waits for its client", code=Code.RECEIPT_MISMATCH
            )

    def _close(
        self, opened: OpenLease, receipt: Signed[Receipt], verdict: Verdict, *, has_accepted: bool
    ) -> None:
        billed, paid_nano = receipt.message, verdict.amount_nano or 0
        if opened.is_ahead and paid_nano:
            self._leases.note_beginning(opened, beginning_of(billed, opened))
        # If the client was ours, it has told more than a receipt can, and this changes nothing.
        # That a job went well is only believed of a node if its client says so.
        is_signed = has_accepted or opened.delivered is not None
        is_evidence = has_accepted or FINISH_RULES[billed.finish].is_fault
        ended = self._leases.settle(
            opened,
            Settlement(
                billed.amount_nano,
                paid_nano=paid_nano,
                is_signed=is_signed,
                is_agreed=is_signed and verdict.state is ReceiptState.SETTLED,
            ),
            observation=observation_of(billed) if is_evidence else None,
        )
        if not ended:
            return  # Node and client handed it in together, and the other was first.
        log.info(
            "receipt_settled",
            job_id=billed.job_id,
            lease_id=billed.lease_id,
            node=billed.node,
            state=verdict.state.value,
            amount_nano=verdict.amount_nano,
        )


def _is_free(opened: OpenLease, said: Delivery) -> bool:
    """Our own gateway got nothing: whatever its node hands in is paid nothing, so that the money
    need not wait for it. A client elsewhere may have signed for more than it says now."""
    return opened.is_watched_by_us and said.units == Units()
