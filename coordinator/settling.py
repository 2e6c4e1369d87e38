"""From a receipt to a payment. Every rule about who is paid what, and when, is in this file.

- A receipt that charges nothing frees the hold at once.
- With an acceptance that agrees, the charge is captured at once.
- Without one the node is paid too, but only after ACCEPTANCE_WITHIN_MS: a client that vanishes has
  got what it asked for, one that merely is slower than its node gets its say. Where the hold would
  not outlive that wait, the node is paid at once: the client has had its time and more.
- If client and node disagree, the smaller of their two charges is paid and the receipt is marked:
  what both sides sign for is certain, the rest is a matter for reputation, not for a coin toss.
- A stream that breaks leaves the client nothing to countersign. What our own client (the gateway)
  counted of it then stands for its word, so that a node cannot break off and bill the maximum.
- A receipt that comes after its hold has expired is refused: that money is the client's again.

A receipt is acknowledged when it is durable, and repeating it changes nothing.
"""

from dataclasses import dataclass

import structlog

from coordinator.db.api_keys import record_spending
from coordinator.db.bulk import Record
from coordinator.db.engine import Database
from coordinator.db.jobs import record_job_state
from coordinator.db.leases import find_lease, record_lease_end
from coordinator.db.receipts import (
    find_receipt,
    list_pending_receipts,
    record_receipt,
)
from coordinator.db.schema import LeaseState, ReceiptState
from coordinator.errors import CoordinatorError
from coordinator.leaser import Observation
from coordinator.ledger.machine import Chain
from coordinator.ledger.postings import capture
from coordinator.ledger.refusals import HoldEndedError
from coordinator.ledger.transfers import Transfer
from coordinator.ledger.writer import LedgerWriter
from coordinator.market import Market
from coordinator.open_leases import OpenLease, OpenLeases
from protocol.clock import Clock
from protocol.envelope import Signed, open_envelope
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import LeaseId
from protocol.job_state import JobState
from protocol.messages import Acceptance, Finish, Lease, Receipt
from protocol.pricing import Units
from protocol.receipts import charge_nano, check_acceptance, check_receipt
from protocol.services import SettleReply

log = structlog.get_logger(__name__)

# A client countersigns within milliseconds; fifteen seconds forgive a sleeping laptop.
ACCEPTANCE_WITHIN_MS = 15_000
# A hold that ends sooner than this cannot wait for its client: the sweep that pays it comes every
# two seconds, and a busy ledger or a short outage takes some more.
PAY_BEFORE_EXPIRY_MS = ACCEPTANCE_WITHIN_MS + 10_000
# One sweep's worth of receipts whose clients stayed silent.
SWEEP_MAX = 500


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a receipt is worth now. `amount_nano` is None while the client still has its say."""

    state: ReceiptState
    amount_nano: int | None


def judge_receipt(
    receipt: Receipt,
    acceptance: Acceptance | None,
    lease: Lease,
    *,
    is_overdue: bool,
    delivered: Units | None = None,
) -> Verdict:
    """The rules above, for evidence that was already checked. `delivered` is what our own client
    counted, if its stream broke before it could countersign."""
    if receipt.amount_nano == 0:
        return Verdict(ReceiptState.SETTLED, 0)
    if acceptance is None and delivered is not None:
        return _smaller(receipt, charge_nano(lease.price, delivered, receipt.finish))
    if acceptance is None:
        if is_overdue:
            return Verdict(ReceiptState.SETTLED, receipt.amount_nano)
        return Verdict(ReceiptState.PENDING, None)
    if acceptance.agrees:
        return Verdict(ReceiptState.SETTLED, receipt.amount_nano)
    return _smaller(receipt, charge_nano(lease.price, acceptance.units, receipt.finish))


def _smaller(receipt: Receipt, counted_nano: int) -> Verdict:
    """Of two charges, with a mark if they differ."""
    if counted_nano == receipt.amount_nano:
        return Verdict(ReceiptState.SETTLED, counted_nano)
    return Verdict(ReceiptState.DISPUTED, min(receipt.amount_nano, counted_nano))


class ReceiptDesk:
    """Takes receipts from clients and nodes, and turns them into captures."""

    def __init__(
        self,
        database: Database,
        writer: LedgerWriter,
        market: Market,
        leases: OpenLeases,
        *,
        clock: Clock,
        fee_bps: int,
    ) -> None:
        self._database = database
        self._writer = writer
        self._market = market
        self._leases = leases
        self._clock = clock
        self._fee_bps = fee_bps

    async def accept(
        self, receipt: Signed[Receipt], acceptance: Signed[Acceptance] | None
    ) -> SettleReply:
        """Make the receipt durable, and pay it if its time has come.

        Raises RemoteProtocolError: NOT_FOUND (no such lease), the codes of `check_receipt` and
        `check_acceptance`, EXPIRED (the hold is gone), or why storage failed.
        """
        lease_id = receipt.message.lease_id
        opened = self._leases.get(lease_id)
        if opened is None:
            return await self._accept_again(receipt, lease_id)
        check_receipt(receipt, opened.lease)
        if acceptance is not None:
            check_acceptance(acceptance, receipt)
        is_last_call = self._clock.now_ms() + PAY_BEFORE_EXPIRY_MS >= opened.hold_expires_at_ms
        return await self._store(receipt, acceptance, opened, is_overdue=is_last_call)

    async def sweep(self) -> int:
        """Pay the receipts whose clients stayed silent. Returns how many; call again if many."""
        before_ms = self._clock.now_ms() - ACCEPTANCE_WITHIN_MS
        pending = await self._database.read(
            list_pending_receipts, received_before_ms=before_ms, limit=SWEEP_MAX
        )
        paid = 0
        for stored in pending:
            opened = self._leases.get(stored.lease_id)
            if opened is None:
                continue  # Its hold has expired meanwhile; the expiry has closed it.
            receipt = open_envelope(stored.receipt, Receipt)
            try:
                await self._store(receipt, None, opened, is_overdue=True)
            except RemoteProtocolError as error:
                log.warning("receipt_not_paid", lease_id=stored.lease_id, code=error.code)
            else:
                paid += 1
        return paid

    async def _store(
        self,
        receipt: Signed[Receipt],
        acceptance: Signed[Acceptance] | None,
        opened: OpenLease,
        *,
        is_overdue: bool,
    ) -> SettleReply:
        billed = receipt.message
        counted = acceptance.message if acceptance is not None else None
        verdict = judge_receipt(
            billed,
            counted,
            opened.lease.message,
            is_overdue=is_overdue,
            delivered=opened.delivered,
        )
        now_ms = self._clock.now_ms()
        row = record_receipt(
            receipt,
            acceptance,
            state=verdict.state,
            amount_nano=billed.amount_nano if verdict.amount_nano is None else verdict.amount_nano,
            now_ms=now_ms,
        )
        if verdict.amount_nano is None:
            await self._submit(Chain(()), (row,))
            return SettleReply(verdict.state, billed.amount_nano)
        chain = capture(opened.funds, verdict.amount_nano, billed.node, fee_bps=self._fee_bps)
        state = LeaseState.SETTLED if verdict.amount_nano else LeaseState.RELEASED
        rows = _rows_of_end(opened, state, billed, verdict.amount_nano, now_ms)
        await self._submit(chain, (row, *rows))
        self._close(opened, receipt, verdict)
        return SettleReply(verdict.state, verdict.amount_nano)

    async def expire(self) -> int:
        """Give back the holds whose time is over. Returns how many; call again if many."""
        now_ms = self._clock.now_ms()

        def rows_of(pending: Transfer) -> tuple[Record, ...]:
            opened = by_hold.get(pending.id)
            if opened is None:
                return ()
            return _rows_of_end(opened, LeaseState.EXPIRED, None, 0, now_ms)

        by_hold = self._leases.by_hold()
        expired = await self._writer.expire_holds(rows_of)
        for pending in expired:
            opened = by_hold.get(pending.id)
            if opened is not None:
                self._forget(opened)
                log.info("hold_expired", lease_id=opened.lease.message.lease_id)
        return len(expired)

    async def _submit(self, chain: Chain, rows: tuple[Record, ...]) -> None:
        try:
            await self._writer.submit(chain, rows)
        except HoldEndedError as error:
            raise RemoteProtocolError(
                "the receipt came after its hold had ended", code=Code.EXPIRED
            ) from error
        except CoordinatorError as error:
            raise RemoteProtocolError(str(error), code=error.code) from error

    async def _accept_again(self, receipt: Signed[Receipt], lease_id: LeaseId) -> SettleReply:
        """A receipt for a lease that is not open: one that we have, or one that comes too late."""
        try:
            stored = await self._database.read(find_receipt, lease_id)
            lease = await self._database.read(find_lease, lease_id)
        except CoordinatorError as error:
            raise RemoteProtocolError(str(error), code=error.code) from error
        if lease is None:
            raise RemoteProtocolError("there is no such lease", code=Code.NOT_FOUND)
        # Pending, and its lease has ended: the hold ran out during an outage. Nothing is left to
        # wait for, and whoever asks must not ask for ever.
        if stored is None or stored.state is ReceiptState.PENDING:
            raise RemoteProtocolError(
                "the receipt came after its hold had ended", code=Code.EXPIRED
            )
        # By digest: the same signed words may come in other wrapping.
        if open_envelope(stored.receipt, Receipt).digest != receipt.digest:
            raise RemoteProtocolError(
                "another receipt for this lease was paid", code=Code.RECEIPT_MISMATCH
            )
        return SettleReply(stored.state, stored.amount_nano)

    def _close(self, opened: OpenLease, receipt: Signed[Receipt], verdict: Verdict) -> None:
        billed = receipt.message
        if self._leases.get(billed.lease_id) is not opened:
            return  # Node and client handed it in together, and the other was first.
        self._forget(opened)
        # If the client was ours, it has told more than a receipt can, and this changes nothing.
        self._market.judge(opened, _observation(billed))
        log.info(
            "receipt_settled",
            job_id=billed.job_id,
            lease_id=billed.lease_id,
            node=billed.node,
            state=verdict.state.value,
            amount_nano=verdict.amount_nano,
        )

    def _forget(self, opened: OpenLease) -> None:
        lease_id = opened.lease.message.lease_id
        self._leases.end(lease_id)
        self._market.book.release(lease_id)


_JOB_STATES = {
    LeaseState.SETTLED: JobState.SETTLED,
    LeaseState.RELEASED: JobState.REFUSED,
    LeaseState.EXPIRED: JobState.EXPIRED,
}


def _rows_of_end(
    opened: OpenLease, state: LeaseState, billed: Receipt | None, paid_nano: int, now_ms: int
) -> tuple[Record, ...]:
    """What else is written when a lease's hold is resolved."""
    granted = opened.lease.message
    job_state = _JOB_STATES[state]
    code = billed.code or None if billed is not None else None
    if billed is not None and billed.finish not in (Finish.REFUSED, Finish.FAILED):
        job_state = JobState.SETTLED  # A job may be complete and cost nothing.
    rows = [
        record_lease_end(granted.lease_id, state, now_ms=now_ms),
        record_job_state(granted.job_id, job_state, ended_at_ms=now_ms, error_code=code),
    ]
    if opened.api_key_id is not None and paid_nano:
        rows.append(record_spending(opened.api_key_id, paid_nano))
    return tuple(rows)


def _observation(receipt: Receipt) -> Observation:
    """What a receipt says of how the job went. Its times are the node's own word: not used."""
    failed = receipt.finish in (Finish.FAILED, Finish.REFUSED)
    return Observation(
        code=_code_of(receipt.code) if failed else None,
        first_output_ms=None,
        total_ms=0.0,
        delivered=receipt.units,
        has_receipt=True,
    )


def _code_of(text: str) -> Code:
    """A newer node may name a code that we do not know: its own reasons, then."""
    try:
        return Code(text)
    except ValueError:
        return Code.INTERNAL
