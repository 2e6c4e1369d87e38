"""The rows of an honest market agree; a row that is changed or missing is noticed."""

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import sim.book_rows
from sim.book_rows import (
    AccountRow,
    Acknowledgement,
    BookRows,
    LeaseRow,
    ReceiptRow,
    TransferRow,
    check_ended,
    check_promises,
    check_rows,
)


def transfer(sequence: int, name: str, debit: str, credit: str, nano: int) -> TransferRow:
    kind = {"hold": "pending", "capture": "post", "release": "void"}.get(name, "posted")
    hold = {"capture": "hold-1", "release": "hold-2"}.get(name)
    job_id = None if name == "credit" else "job-2" if name == "release" else "job-1"
    return TransferRow(
        f"{name}-{sequence}", sequence, debit, credit, nano, kind, name, hold, job_id
    )


PAID = TransferRow("hold-1", 2, "client", "escrow", 50, "pending", "hold", None, "job-1")
FREED = TransferRow("hold-2", 6, "client", "escrow", 20, "pending", "hold", None, "job-2")
RUNNING = TransferRow("hold-3", 8, "client", "escrow", 30, "pending", "hold", None, "job-3")
# One job was paid, one was released, one runs and waits for its client's word.
HONEST = BookRows(
    transfers=(
        transfer(1, "credit", "issuance", "client", 1_000),
        PAID,
        transfer(3, "capture", "client", "escrow", 40),
        transfer(4, "capture_node", "escrow", "node", 36),
        transfer(5, "capture_fee", "escrow", "operator", 4),
        FREED,
        transfer(7, "release", "client", "escrow", 20),
        RUNNING,
    ),
    leases={
        "lease-1": LeaseRow("lease-1", "job-1", "client", "hold-1", 50, "settled"),
        "lease-2": LeaseRow(
            "lease-2", "job-2", "client", "hold-2", 20, "released", delivery=b"nothing came"
        ),
        "lease-3": LeaseRow("lease-3", "job-3", "client", "hold-3", 30, "open"),
    },
    receipts={
        "lease-1": ReceiptRow("lease-1", "job-1", b"one", 40, "settled"),
        "lease-3": ReceiptRow("lease-3", "job-3", b"three", 10, "pending"),
    },
    accounts=(
        AccountRow("issuance", (0, 1_000, 0, 0)),
        AccountRow("client", (30, 40, 0, 1_000)),
        AccountRow("escrow", (0, 40, 30, 40)),
        AccountRow("node", (0, 0, 0, 36)),
        AccountRow("operator", (0, 0, 0, 4)),
    ),
    open_holds=frozenset({"hold-3"}),
    running_jobs=("job-3",),
)
PROMISES = (
    Acknowledgement("lease-1", b"one", True, 40),
    Acknowledgement("lease-3", b"three", False, 10),
)
DELIVERIES = {"lease-2": b"nothing came"}


def test_honest_rows_agree() -> None:
    assert list(check_rows(HONEST)) == []
    assert list(check_promises(HONEST, HONEST.leases, PROMISES, DELIVERIES)) == []
    assert len(list(check_ended(HONEST))) == 3


@pytest.mark.parametrize("index", range(len(HONEST.transfers)))
def test_a_transfer_that_is_missing_is_noticed(index: int) -> None:
    left = HONEST.transfers[:index] + HONEST.transfers[index + 1 :]
    numbered = tuple(replace(row, sequence=n) for n, row in enumerate(left, 1))
    assert list(check_rows(replace(HONEST, transfers=numbered)))


@pytest.mark.parametrize("index", range(len(HONEST.transfers)))
@pytest.mark.parametrize("by_nano", [-1, 1])
def test_a_transfer_of_another_amount_is_noticed(index: int, by_nano: int) -> None:
    """But for what ends a hold without paying: its amount moves nothing."""
    rows = list(HONEST.transfers)
    rows[index] = replace(rows[index], amount_nano=rows[index].amount_nano + by_nano)
    found = list(check_rows(replace(HONEST, transfers=tuple(rows))))
    assert bool(found) is (rows[index].kind != "void")


def with_lease(lease_id: str, state: str) -> BookRows:
    changed = replace(HONEST.leases[lease_id], state=state)
    return replace(HONEST, leases={**HONEST.leases, lease_id: changed})


def with_receipt(lease_id: str, **changes: object) -> BookRows:
    changed = replace(HONEST.receipts[lease_id], **changes)  # type: ignore[arg-type]
    return replace(HONEST, receipts={**HONEST.receipts, lease_id: changed})


def paid_twice() -> BookRows:
    again = replace(HONEST.transfers[2], id="again", sequence=9)
    return replace(HONEST, transfers=(*HONEST.transfers, again))


def given_away() -> BookRows:
    """The operator pays for the first job, and its receipt says so."""
    rows = [replace(row, code="goodwill", kind="posted") for row in HONEST.transfers[2:3]]
    return replace(HONEST, transfers=(*HONEST.transfers[:2], *rows, *HONEST.transfers[3:]))


WRONG: dict[str, Callable[[], BookRows]] = {
    "a transfer's number is skipped": lambda: replace(
        HONEST, transfers=(*HONEST.transfers[:-1], replace(RUNNING, sequence=9))
    ),
    "a hold ended twice": paid_twice,
    "a released lease was captured": lambda: with_lease("lease-1", "released"),
    "a settled lease was released": lambda: with_lease("lease-2", "settled"),
    "an open lease was captured": lambda: with_lease("lease-1", "open"),
    "a lease ended and its hold did not": lambda: with_lease("lease-3", "expired"),
    "a hold is open and unknown as such": lambda: replace(HONEST, open_holds=frozenset()),
    "a receipt was billed more": lambda: with_receipt("lease-1", amount_nano=41),
    "the operator pays for a captured lease": given_away,
    "a receipt waits for an ended hold": lambda: with_receipt("lease-1", state="pending"),
    "a receipt is of another job": lambda: with_receipt("lease-1", job_id="job-2"),
    "an account is missing": lambda: replace(HONEST, accounts=HONEST.accounts[1:]),
    "a balance is wrong": lambda: replace(
        HONEST, accounts=(*HONEST.accounts[:-1], AccountRow("operator", (0, 0, 0, 5)))
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_contradict_each_other_are_noticed(name: str) -> None:
    assert list(check_rows(WRONG[name]()))


@pytest.mark.parametrize(
    "rows",
    [
        replace(HONEST, leases={}),
        replace(HONEST, receipts={}),
        with_receipt("lease-1", amount_nano=39),
        with_receipt("lease-1", state="pending"),
        replace(
            HONEST,
            leases={**HONEST.leases, "lease-2": replace(HONEST.leases["lease-2"], delivery=None)},
        ),
    ],
    ids=["a lease", "a receipt", "its amount", "that it was settled", "a client's word"],
)
def test_what_was_acknowledged_and_is_lost_is_noticed(rows: BookRows) -> None:
    assert list(check_promises(rows, HONEST.leases, PROMISES, DELIVERIES))


def test_the_checks_know_neither_ledger_nor_database() -> None:
    tree = ast.parse(Path(sim.book_rows.__file__).read_text())
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in modules if name.startswith(("coordinator", "sqlalchemy"))}
