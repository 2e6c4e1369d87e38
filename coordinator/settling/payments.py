"""How a verdict becomes transfers: resolve a lease's hold, and write its rows with it.

What is paid is decided in `verdicts`, when in `receipt_service`. Everything of one lease is one
chain in one transaction: the receipt's row, the lease's end, the job's state, and the money.
"""

from contextlib import suppress
from dataclasses import replace

import structlog

from coordinator.db.bulk import Record
from coordinator.db.engine import Database
from coordinator.db.jobs import record_job_end
from coordinator.db.leases import (
    StoredLease,
    find_lease_of_hold,
    record_delivery,
    record_lease_end,
)
from coordinator.db.transfers import record_hold_bound
from coordinator.db.writer import LedgerWriter
from coordinator.errors import CoordinatorError
from coordinator.leasing.open_lease import OpenLease
from coordinator.ledger.machine import Chain
from coordinator.ledger.postings import capture, capture_from_operator, capture_late, release
from coordinator.ledger.refusals import HoldEndedError, PostingRefusedError
from coordinator.ledger.transfers import Result, Transfer
from protocol.clock import Clock
from protocol.countersigning import Delivery
from protocol.endings import LeaseState
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import TransferId
from protocol.job_state import state_after_lease
from protocol.messages import Lease, Receipt
from protocol.money import split_fee

log = structlog.get_logger(__name__)

TOO_LATE = "the receipt came after its hold had ended"


class Payments:
    """Posts captures, releases and expiries, each with its rows."""

    def __init__(
        self, database: Database, writer: LedgerWriter, *, clock: Clock, fee_bps: int
    ) -> None:
        self._database = database
        self._writer = writer
        self._clock = clock
        self._fee_bps = fee_bps

    def share_nano(self, amount_nano: int) -> int:
        """What a node gets of a payment, after the fee as it is now."""
        share_nano, _ = split_fee(amount_nano, self._fee_bps)
        return share_nano

    async def store(self, receipt_row: Record) -> None:
        """Make a receipt durable that is not paid yet. Raises RemoteProtocolError."""
        await self._submit(Chain(()), (receipt_row,))

    async def store_delivery(self, opened: OpenLease, delivery: Signed[Delivery]) -> None:
        """Make a client's word durable. What an API key has reserved beyond it is free again.
        Raises RemoteProtocolError."""
        rows = [record_delivery(delivery)]
        if opened.api_key_id is not None:
            most_nano = replace(opened, delivered=delivery.message.units).most_nano
            rows.append(record_hold_bound(opened.funds.hold_id, most_nano))
        await self._submit(Chain(()), tuple(rows))

    async def pay(
        self,
        opened: OpenLease,
        billed: Receipt,
        amount_nano: int,
        receipt_row: Record,
        *,
        is_lone: bool,
    ) -> None:
        """Resolve the hold and pay, in one chain. That the receipt came in time is decided before;
        the hold may have timed out since, also between our look at the clock and the books' own.
        An answer that our own end has cut is paid by the operator, if no client signed for it.

        Raises RemoteProtocolError."""

        is_gift = is_lone and opened.was_cut_by_us

        async def post(*, is_late: bool) -> None:
            if is_gift:
                chain = capture_from_operator(
                    opened.funds, amount_nano, billed.node, fee_bps=self._fee_bps, is_late=is_late
                )
            else:
                make = capture_late if is_late else capture
                chain = make(opened.funds, amount_nano, billed.node, fee_bps=self._fee_bps)
            state = _lease_state(0 if is_gift else amount_nano, is_late=is_late)
            rows = _rows_of_end(opened.lease.message, state, billed, now_ms)
            await self._submit(chain, (receipt_row, *rows))

        now_ms = self._clock.now_ms()
        if now_ms < opened.hold_expires_at_ms:
            with suppress(_HoldTimedOutError):
                await post(is_late=False)
                return
        await post(is_late=True)
        log.info("receipt_paid_late", job_id=billed.job_id, lease_id=billed.lease_id)

    async def release(self, opened: OpenLease) -> None:
        """Give the hold of a lease back that was never opened. Raises RemoteProtocolError."""
        now_ms = self._clock.now_ms()
        rows = _rows_of_end(opened.lease.message, LeaseState.RELEASED, None, now_ms)
        await self._submit(release(opened.funds), rows)

    async def expire(self, by_hold: dict[TransferId, OpenLease]) -> list[Transfer]:
        """Give back the holds whose time is over, and that wait for no receipt. Returns those that
        this call ended."""
        now_ms = self._clock.now_ms()

        async def rows_of(pending: Transfer) -> tuple[Record, ...]:
            opened = by_hold.get(pending.id)
            if opened is not None:
                return _rows_of_end(opened.lease.message, LeaseState.EXPIRED, None, now_ms)
            # Another process granted it, or we have lost sight of it: its rows end all the same.
            stored = await self._database.read(find_lease_of_hold, pending)
            if stored is None or stored.state is not LeaseState.OPEN:
                return ()
            return _rows_of_end(stored, LeaseState.EXPIRED, None, now_ms)

        def is_kept(pending: Transfer) -> bool:
            opened = by_hold.get(pending.id)
            return opened is not None and opened.is_payable(now_ms)

        return await self._writer.expire_holds(rows_of, is_kept=is_kept)

    async def _submit(self, chain: Chain, rows: tuple[Record, ...]) -> None:
        try:
            await self._writer.submit(chain, rows)
        except PostingRefusedError as error:
            if error.result is Result.PENDING_TRANSFER_ALREADY_EXPIRED:
                raise _HoldTimedOutError(TOO_LATE, code=Code.EXPIRED) from error
            if isinstance(error, HoldEndedError) or error.result is Result.CHAIN_EXISTS_IN_PART:
                raise RemoteProtocolError(TOO_LATE, code=Code.EXPIRED) from error
            raise RemoteProtocolError(str(error), code=error.code) from error
        except CoordinatorError as error:
            raise RemoteProtocolError(str(error), code=error.code) from error


class _HoldTimedOutError(RemoteProtocolError):
    """The books' time has passed a hold's timeout."""


def _lease_state(paid_nano: int, *, is_late: bool) -> LeaseState:
    """What becomes of a lease with its receipt: a hold that has timed out is not released."""
    if paid_nano:
        return LeaseState.SETTLED
    return LeaseState.EXPIRED if is_late else LeaseState.RELEASED


def _rows_of_end(
    lease: Lease | StoredLease, state: LeaseState, billed: Receipt | None, now_ms: int
) -> tuple[Record, ...]:
    """What else is written when a lease's hold is resolved."""
    code = billed.code or None if billed is not None else None
    job_state = state_after_lease(state, billed.finish if billed is not None else None)
    return (
        record_lease_end(lease.lease_id, state, now_ms=now_ms),
        record_job_end(lease, job_state, ended_at_ms=now_ms, error_code=code),
    )
