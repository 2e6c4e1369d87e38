"""Proof that the books are right: everything that should follow from the transfers, does.

A list of small checks, each of which reports all that it finds. It reads one snapshot, so the
market may go on meanwhile. Memory grows with accounts and open holds, not with transfers.

This checks what is stored, with arithmetic of its own; the rules that decide what may be stored are
in `coordinator.ledger.machine`. Queries are in `coordinator.db.audits`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from coordinator.audit.findings import Check, Finding
from coordinator.audit.rows import check_rows
from coordinator.audit.transfers import Balance, Fold, check_transfers
from coordinator.db import audits
from coordinator.db.engine import Connection
from coordinator.ledger.accounts import Account, AccountId, SystemAccount
from protocol.ids import PeerId
from protocol.money import format_credits

# A broken database may have a finding per row: more than these are not read.
_FINDINGS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was looked at, and everything that is wrong with it."""

    transfers: int
    accounts: int
    open_holds: int
    issued_nano: int
    held_nano: int
    findings: tuple[Finding, ...]

    @property
    def is_green(self) -> bool:
        return not self.findings


def audit(conn: Connection, *, signer: PeerId | None = None) -> AuditReport:
    """Check the whole book. Takes some seconds per million transfers.

    With `signer`, every head of the hash chain must be signed by this coordinator.
    """
    try:
        return _audit(conn, signer)
    except (LookupError, ValueError, TypeError) as error:
        # A word or a number that no row of ours has ever held.
        message = f"a value in the database means nothing: {error}"
        return AuditReport(0, 0, 0, 0, 0, (Finding(Check.ROW_UNREADABLE, "", message),))


def _audit(conn: Connection, signer: PeerId | None) -> AuditReport:
    accounts = audits.load_accounts(conn)
    fold = Fold()
    checks = (
        check_transfers(conn, fold, accounts, signer),
        _check_balances(fold, accounts),
        _check_sums(accounts),
        _check_open_holds(conn, fold),
        check_rows(conn),
    )
    found = (finding for check in checks for finding in check)
    findings = list(islice(found, _FINDINGS_MAX))
    if len(findings) == _FINDINGS_MAX:
        findings.append(Finding(Check.MORE_FINDINGS, "", "there is more wrong than is listed here"))
    issuance = accounts.get(SystemAccount.ISSUANCE)
    escrow = accounts.get(SystemAccount.ESCROW)
    return AuditReport(
        transfers=fold.sequence,
        accounts=len(accounts),
        open_holds=len(fold.open),
        issued_nano=-issuance.posted_nano if issuance else 0,
        held_nano=escrow.credits_pending if escrow else 0,
        findings=tuple(findings),
    )


def _check_balances(fold: Fold, accounts: dict[AccountId, Account]) -> Iterator[Finding]:
    for account in accounts.values():
        folded = fold.balances.get(account.id, Balance())
        for name in ("debits_pending", "debits_posted", "credits_pending", "credits_posted"):
            stored, expected = getattr(account, name), getattr(folded, name)
            if stored != expected:
                yield Finding(
                    Check.BALANCE_IS_NOT_FOLD,
                    account.id,
                    f"{name} is {stored}, its transfers make {expected}",
                )


def _check_sums(accounts: dict[AccountId, Account]) -> Iterator[Finding]:
    sums: tuple[tuple[str, Callable[[Account], int], Callable[[Account], int]], ...] = (
        ("posted", lambda a: a.debits_posted, lambda a: a.credits_posted),
        ("pending", lambda a: a.debits_pending, lambda a: a.credits_pending),
    )
    for name, debits_of, credits_of in sums:
        debited = sum(map(debits_of, accounts.values()))
        credited = sum(map(credits_of, accounts.values()))
        if debited != credited:
            yield Finding(
                Check.DEBITS_ARE_NOT_CREDITS,
                "",
                f"all {name} debits are {debited}, all {name} credits {credited}",
            )
    escrow = accounts.get(SystemAccount.ESCROW)
    if escrow is not None and escrow.posted_nano != 0:
        # A capture passes money through it in one chain: what stays has lost its way.
        yield Finding(
            Check.ESCROW_KEEPS_MONEY, escrow.id, f"it holds {format_credits(escrow.posted_nano)}"
        )


def _check_open_holds(conn: Connection, fold: Fold) -> Iterator[Finding]:
    stored = audits.load_open_holds(conn)
    for hold_id in sorted(stored.keys() - fold.open.keys()):
        yield Finding(Check.OPEN_HOLDS_DIFFER, hold_id, "it is listed as open, and is not")
    for hold_id, hold in fold.open.items():
        if hold_id not in stored:
            yield Finding(Check.OPEN_HOLDS_DIFFER, hold_id, "it is open, and not listed")
        elif stored[hold_id] != hold.timeout_at_ms:
            yield Finding(
                Check.OPEN_HOLDS_DIFFER,
                hold_id,
                f"its timeout is listed as {stored[hold_id]}, and is {hold.timeout_at_ms}",
            )
