"""What was paid, after the fee: how it is kept, bounded, upgraded, added up and printed."""

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capanode.cli import app
from capanode.earnings import By, add_up, day_text, parse_since
from capanode.outbox_store import (
    DAYS_KEPT,
    EARLIER,
    OutboxReceipt,
    OutboxStore,
    PaidDay,
    acknowledge,
    put_receipt,
    read_paid_days,
)
from protocol.ids import LeaseId, PeerId, new_ulid
from protocol.services import DAY_MS
from tests.protocol.makers import COORDINATOR

MARKET = COORDINATOR.peer_id
TODAY = 20_000
DAYS = (
    PaidDay(EARLIER, MARKET, "", "", 5, 500, 500),
    PaidDay(TODAY - 1, MARKET, "small", "a card", 1, 10, 9),
    PaidDay(TODAY, MARKET, "large", "a card", 2, 100, 95),
    PaidDay(TODAY, MARKET, "small", "a processor", 1, 10, 9),
)
# The outbox as version 1 made it.
FIRST_SCHEMA = """
    CREATE TABLE receipts (
        lease_id VARCHAR(26) NOT NULL PRIMARY KEY, coordinator VARCHAR(64) NOT NULL,
        receipt BLOB NOT NULL, acceptance BLOB NOT NULL, amount_nano BIGINT NOT NULL,
        state VARCHAR(16) NOT NULL, reason VARCHAR(200) NOT NULL, tries INTEGER NOT NULL,
        due_ms BIGINT NOT NULL, CONSTRAINT amount_is_not_negative CHECK (amount_nano >= 0));
    CREATE TABLE earnings (
        coordinator VARCHAR(64) NOT NULL, state VARCHAR(16) NOT NULL, jobs BIGINT NOT NULL,
        amount_nano BIGINT NOT NULL, PRIMARY KEY (coordinator, state));
    INSERT INTO receipts VALUES ('L', 'C', x'00', x'', 7, 'waiting', '', 0, 1);
    INSERT INTO earnings VALUES ('C', 'settled', 3, 300), ('C', 'disputed', 1, 20);
    PRAGMA user_version = 1;
"""


def pay(store: OutboxStore, *, day: int, model: str = "small", paid_nano: int = 9) -> None:
    lease_id = LeaseId(new_ulid(day * DAY_MS, day.to_bytes(10, "big")))
    stored = OutboxReceipt(lease_id, PeerId(MARKET), b"", b"", 10, 0, 0, model=model, device="card")
    paid = acknowledge(stored, state="settled", paid_nano=paid_nano, day=day)
    store.apply([put_receipt(stored), paid])
    # Handed in a second time, it counts no second time.
    store.apply([paid])


def test_what_was_paid_is_counted_once_by_day_model_and_device(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    store = OutboxStore(path)
    pay(store, day=TODAY)
    pay(store, day=TODAY + 1, model="large", paid_nano=8)
    assert store.paid_since(TODAY + 1) == 8
    assert store.paid_since(EARLIER) == 17
    # While the node has it open, and after.
    assert read_paid_days(path) == [
        PaidDay(TODAY, MARKET, "small", "card", 1, 10, 9),
        PaidDay(TODAY + 1, MARKET, "large", "card", 1, 10, 8),
    ]
    store.close()
    assert len(read_paid_days(path)) == 2


def test_old_days_are_added_up_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    store = OutboxStore(path)
    for day in range(TODAY, TODAY + DAYS_KEPT + 3):
        pay(store, day=day)
    store.close()
    days = read_paid_days(path)
    assert len(days) == DAYS_KEPT + 1
    assert (days[0].day, days[0].jobs, days[0].paid_nano) == (EARLIER, 3, 27)
    assert sum(paid.paid_nano for paid in days) == 9 * (DAYS_KEPT + 3)


def test_an_outbox_of_the_first_version_keeps_its_receipts_and_its_earnings(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(FIRST_SCHEMA)
    connection.close()
    assert read_paid_days(path) == [], "it is read before the node upgrades it, too"
    for _ in range(2):
        store = OutboxStore(path)
        (waiting,) = store.load()
        store.close()
        assert (waiting.lease_id, waiting.model) == ("L", "")
        assert read_paid_days(path) == [PaidDay(EARLIER, PeerId("C"), "", "", 4, 320, 320)]


def test_earnings_are_added_up_by_day_model_or_device() -> None:
    by_day = add_up(DAYS, By.DAY)
    assert [(row.name, row.jobs, row.paid_nano) for row in by_day] == [
        ("earlier", 5, 500),
        (day_text(TODAY - 1), 1, 9),
        (day_text(TODAY), 3, 104),
    ]
    by_model = add_up(DAYS, By.MODEL, since_day=TODAY - 1)
    assert [(row.name, row.paid_nano) for row in by_model] == [("large", 95), ("small", 18)]
    by_device = add_up(DAYS, By.DEVICE)
    assert [row.name for row in by_device] == ["not noted", "a card", "a processor"]


def test_a_beginning_is_a_date_or_days_ago() -> None:
    now_ms = TODAY * DAY_MS + 5
    assert parse_since("0d", now_ms=now_ms) == TODAY
    assert parse_since("7d", now_ms=now_ms) == TODAY - 7
    assert parse_since(day_text(TODAY - 3), now_ms=now_ms) == TODAY - 3
    for text in ("", "yesterday", "7", "2026-13-01", "99999d"):
        with pytest.raises(ValueError, match="7d"):
            parse_since(text, now_ms=now_ms)


def test_the_command_prints_what_is_on_disk(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    assert "nothing was paid" in CliRunner().invoke(app, ["earnings", *where]).stderr
    store = OutboxStore(tmp_path / "outbox.sqlite")
    pay(store, day=TODAY, paid_nano=950_000_000)
    store.close()
    told = CliRunner().invoke(app, ["earnings", "--by", "model", "--json", *where])
    assert json.loads(told.stdout) == {
        "by": "model",
        "paid_nano": 950_000_000,
        "rows": [{"name": "small", "jobs": 1, "billed_nano": 10, "paid_nano": 950_000_000}],
    }
    table = CliRunner().invoke(app, ["earnings", *where]).stdout
    assert day_text(TODAY) in table
    assert "0.95" in table
    wrong = CliRunner().invoke(app, ["earnings", "--since", "soon", *where])
    assert (wrong.exit_code, "7d" in wrong.stderr) == (2, True)
