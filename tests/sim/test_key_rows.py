"""A key is charged what its holds came to, within its budget; what differs is noticed."""

from dataclasses import replace

import pytest

from sim.book_rows import BookRows, LeaseRow, TransferRow
from sim.key_rows import KeyRow, check_budgets, check_charges


def row(sequence: int, name: str, nano: int, pending_id: str | None = None) -> TransferRow:
    kind = {"hold": "pending", "expire": "expire", "capture": "post"}[name]
    if name == "capture" and pending_id is None:
        kind = "posted"
    return TransferRow(
        f"{name}-{sequence}", sequence, "client", "escrow", nano, kind, name, pending_id, "job"
    )


def lease(number: int, api_key_id: str | None) -> LeaseRow:
    hold_id = f"hold-{number}"
    return LeaseRow(f"lease-{number}", "job", "client", hold_id, 50, "settled", api_key_id)


# Two leases of a key, of which one was paid after its hold had expired, and one without a key.
ROWS = BookRows(
    transfers=(
        row(1, "hold", 50),
        row(2, "hold", 50),
        row(3, "hold", 50),
        row(4, "capture", 30, "hold-1"),
        row(5, "expire", 50, "hold-2"),
        row(6, "capture", 20),
        row(7, "capture", 10, "hold-3"),
    ),
    leases={f"lease-{n}": lease(n, key) for n, key in ((1, "key"), (2, "key"), (3, None))},
    receipts={},
    accounts=(),
    open_holds=frozenset(),
    running_jobs=(),
)
KEY = KeyRow("key", budget_nano=100, spent_nano=50, counted_nano=0)


def test_a_key_that_was_charged_its_holds_is_right() -> None:
    assert list(check_charges(ROWS, [KEY], {})) == []
    assert list(check_charges(ROWS, [KEY], {"key": 2})) == []
    assert list(check_budgets([replace(KEY, counted_nano=50)])) == []
    assert list(check_budgets([replace(KEY, budget_nano=None, counted_nano=10_000)])) == []


@pytest.mark.parametrize(
    ("key", "revoked_after"),
    [
        (replace(KEY, spent_nano=30), {}),
        (replace(KEY, spent_nano=60), {}),
        (replace(KEY, budget_nano=49), {}),
        (KEY, {"key": 1}),
    ],
    ids=["a capture is not counted", "too much is counted", "over budget", "revoked"],
)
def test_a_wrong_charge_is_noticed(key: KeyRow, revoked_after: dict[str, int]) -> None:
    assert list(check_charges(ROWS, [key], revoked_after))


def test_more_held_than_a_budget_leaves_is_noticed() -> None:
    assert list(check_budgets([replace(KEY, counted_nano=51)]))
