"""What happens to money in this market, in words: credit, withdraw, hold, capture, release, expire.

Every function returns a chain for the ledger. Ids derive from the lease, so that saying the same
thing twice moves money once, for every repetition: a client's retry, a node's outbox, a restart.

    hold      client ──pending──▶ escrow                    ceiling of the lease
    capture   client ──post─────▶ escrow ──▶ node, operator what the receipt says; the rest is freed
    release   (void)                                        refused, or nothing delivered
    expire    (expire)                                      no receipt before the timeout
    late      client ──(expire)─▶ escrow ──▶ node, operator a receipt in time, paid too late
    goodwill  goodwill ─────────▶ escrow ──▶ node, operator the operator pays, the client does not
"""

from dataclasses import dataclass

from coordinator.ledger.accounts import (
    Account,
    AccountId,
    AccountKind,
    SystemAccount,
    account_of,
)
from coordinator.ledger.machine import Chain
from coordinator.ledger.transfers import Transfer, TransferCode, TransferKind
from protocol.ids import JobId, LeaseId, PeerId, TransferId, derive_ulid, ulid_time_ms
from protocol.money import split_fee

_ESCROW = SystemAccount.ESCROW


@dataclass(frozen=True, slots=True)
class LeaseFunds:
    """The money of one lease: whose, and at most how much."""

    lease_id: LeaseId
    job_id: JobId
    client: PeerId
    ceiling_nano: int

    @property
    def hold_id(self) -> TransferId:
        return _derive(self.lease_id, "hold")


def credit(
    transfer_id: TransferId,
    account_id: AccountId,
    amount_nano: int,
    *,
    opens: Account | None = None,
) -> Chain:
    """Money enters the market, for example because someone paid by card."""
    return Chain(
        (
            Transfer(
                transfer_id,
                SystemAccount.ISSUANCE,
                account_id,
                amount_nano,
                TransferKind.POSTED,
                TransferCode.CREDIT,
            ),
        ),
        () if opens is None else (opens,),
    )


def withdraw(transfer_id: TransferId, account_id: AccountId, amount_nano: int) -> Chain:
    """Money leaves the market: a provider's payout, a client's refund, the operator's fees."""
    return Chain(
        (
            Transfer(
                transfer_id,
                account_id,
                SystemAccount.ISSUANCE,
                amount_nano,
                TransferKind.POSTED,
                TransferCode.WITHDRAW,
            ),
        )
    )


def lease_id_of(client: PeerId, job_id: JobId, attempt: int) -> LeaseId:
    """The lease of a client's nth attempt at a job, so that asking twice holds money once.

    The client is part of it: clients choose the ids of their jobs, and two may choose the same.
    """
    return LeaseId(derive_ulid(job_id, f"lease/{client}/{attempt}"))


def hold(funds: LeaseFunds, *, timeout_at_ms: int, api_key_id: str | None = None) -> Chain:
    """Reserve the ceiling before any work. The timeout leaves time for the receipt to arrive.

    With `api_key_id` the ceiling must fit into what the key's budget leaves, and counts against it
    until the hold ends; a revoked key holds nothing.
    """
    return Chain(
        (
            Transfer(
                funds.hold_id,
                account_of(funds.client),
                _ESCROW,
                funds.ceiling_nano,
                TransferKind.PENDING,
                TransferCode.HOLD,
                timeout_at_ms=timeout_at_ms,
                job_id=funds.job_id,
            ),
        ),
        api_key_id=api_key_id,
    )


def capture(funds: LeaseFunds, amount_nano: int, node: PeerId, *, fee_bps: int) -> Chain:
    """Pay what was delivered, at most the ceiling: the node its share, the operator the fee.

    The node's account is opened by its first earning. Capturing nothing is a release.
    """
    if amount_nano == 0:
        return release(funds)
    post = _resolve(funds, amount_nano, TransferKind.POST, TransferCode.CAPTURE)
    return _pay_out(funds, (post,), amount_nano, node, fee_bps)


def capture_late(funds: LeaseFunds, amount_nano: int, node: PeerId, *, fee_bps: int) -> Chain:
    """Pay, after the timeout, a receipt that had come before it: the hold expires and what it frees
    is spent in one chain, so that no other chain can spend it in between.

    Of one lease either this happens or `capture`: both take the client's money under one id.
    """
    assert amount_nano <= funds.ceiling_nano, "the hold covers what is paid from it"
    expiry = _expiry(funds)
    if amount_nano == 0:
        return Chain((expiry,))
    post = _resolve(funds, amount_nano, TransferKind.POSTED, TransferCode.CAPTURE)
    return _pay_out(funds, (expiry, post._replace(pending_id=None)), amount_nano, node, fee_bps)


def capture_from_operator(
    funds: LeaseFunds, amount_nano: int, node: PeerId, *, fee_bps: int, is_late: bool
) -> Chain:
    """Pay a node for an answer that the coordinator itself cut: the client gets the whole hold
    back, the operator pays. `is_late` if the hold has timed out.

    Of one lease either this happens or `capture` or `capture_late`: each of them ends the hold.
    """
    ending = _expiry(funds) if is_late else release(funds).transfers[0]
    if amount_nano == 0:
        return Chain((ending,))
    gift = Transfer(
        _derive(funds.lease_id, TransferCode.GOODWILL),
        SystemAccount.GOODWILL,
        _ESCROW,
        amount_nano,
        TransferKind.POSTED,
        TransferCode.GOODWILL,
        job_id=funds.job_id,
    )
    return _pay_out(funds, (ending, gift), amount_nano, node, fee_bps)


def release(funds: LeaseFunds) -> Chain:
    """Give the whole hold back."""
    return Chain((_resolve(funds, funds.ceiling_nano, TransferKind.VOID, TransferCode.RELEASE),))


def expire(pending: Transfer) -> Chain:
    """Give back a hold whose time is over."""
    return Chain(
        (
            pending._replace(
                id=_derive(pending.id, TransferCode.EXPIRE),
                kind=TransferKind.EXPIRE,
                code=TransferCode.EXPIRE,
                pending_id=pending.id,
                timeout_at_ms=None,
            ),
        )
    )


def _pay_out(
    funds: LeaseFunds,
    charge: tuple[Transfer, ...],
    amount_nano: int,
    node: PeerId,
    fee_bps: int,
) -> Chain:
    """`charge` brings the amount into escrow; this takes it out again, to node and operator."""
    provider_nano, fee_nano = split_fee(amount_nano, fee_bps)
    legs = (
        (account_of(node), provider_nano, TransferCode.CAPTURE_NODE),
        (SystemAccount.OPERATOR, fee_nano, TransferCode.CAPTURE_FEE),
    )
    return Chain(
        (
            *charge,
            *(
                Transfer(
                    _derive(funds.lease_id, code),
                    _ESCROW,
                    account_id,
                    leg_nano,
                    TransferKind.POSTED,
                    code,
                    job_id=funds.job_id,
                )
                for account_id, leg_nano, code in legs
                if leg_nano
            ),
        ),
        (Account(account_of(node), AccountKind.NODE, created_at_ms=ulid_time_ms(funds.lease_id)),),
    )


def _expiry(funds: LeaseFunds) -> Transfer:
    expiry = _resolve(funds, funds.ceiling_nano, TransferKind.EXPIRE, TransferCode.EXPIRE)
    return expiry._replace(id=_derive(funds.hold_id, TransferCode.EXPIRE))


def _resolve(
    funds: LeaseFunds, amount_nano: int, kind: TransferKind, code: TransferCode
) -> Transfer:
    return Transfer(
        _derive(funds.lease_id, code),
        account_of(funds.client),
        _ESCROW,
        amount_nano,
        kind,
        code,
        pending_id=funds.hold_id,
        job_id=funds.job_id,
    )


def _derive(base: str, purpose: str) -> TransferId:
    return TransferId(derive_ulid(base, purpose))
