"""What the owner earned, added up by day, model or device: what `capanode earnings` prints."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from capanode.outbox_store import EARLIER, PaidDay
from protocol.services import DAY_MS

# What is printed for days that are not kept singly, and for what older versions did not note.
EARLIER_TEXT = "earlier"
UNKNOWN_TEXT = "not noted"

_EPOCH = date(1970, 1, 1)
_DAYS_AGO = re.compile(r"([0-9]{1,4})d")


class By(StrEnum):
    """What earnings are added up by."""

    DAY = "day"
    MODEL = "model"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class EarningsRow:
    """`name` is a day, a model or a device; `billed_nano` is before coordinators' fees, `paid_nano`
    after."""

    name: str
    jobs: int
    billed_nano: int
    paid_nano: int


def parse_since(text: str, *, now_ms: int) -> int:
    """A day since the epoch: of a date such as 2026-11-01, or of so many days ago, such as 7d.

    Raises ValueError with what was expected.
    """
    today = now_ms // DAY_MS
    if ago := _DAYS_AGO.fullmatch(text):
        return max(EARLIER + 1, today - int(ago[1]))
    try:
        return max(EARLIER + 1, (date.fromisoformat(text) - _EPOCH).days)
    except ValueError:
        raise ValueError("a date such as 2026-11-01, or days ago such as 7d") from None


def day_text(day: int) -> str:
    if day == EARLIER:
        return EARLIER_TEXT
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%d")


def add_up(days: Iterable[PaidDay], by: By, *, since_day: int = EARLIER) -> list[EarningsRow]:
    """Rows by day in order of time, or else the one that earned most first."""
    rows: dict[str, EarningsRow] = {}
    for paid in days:
        if paid.day < since_day:
            continue
        name = _name(paid, by)
        row = rows.get(name, EarningsRow(name, 0, 0, 0))
        rows[name] = EarningsRow(
            name,
            row.jobs + paid.jobs,
            row.billed_nano + paid.billed_nano,
            row.paid_nano + paid.paid_nano,
        )
    if by is By.DAY:
        return list(rows.values())
    return sorted(rows.values(), key=lambda row: (-row.paid_nano, row.name))


def _name(paid: PaidDay, by: By) -> str:
    match by:
        case By.DAY:
            return day_text(paid.day)
        case By.MODEL:
            return paid.model or UNKNOWN_TEXT
        case By.DEVICE:
            return paid.device or UNKNOWN_TEXT
