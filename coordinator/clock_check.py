"""The machine's clock against the books, before a coordinator starts to judge timeouts by it."""

from datetime import UTC, datetime

from coordinator.db.engine import Connection
from coordinator.db.transfers import count_open_holds, list_transfers
from coordinator.errors import CoordinatorError

# Longer than most outages. A clock that is further ahead would give back every open hold at once.
AHEAD_MAX_MS = 24 * 3_600_000
# Machines whose clocks are kept differ by less, also after a crash.
BEHIND_MAX_MS = 5 * 60_000

_ADVICE = "set the clock, or, if it is right, start once with --accept-clock"


class ClockError(CoordinatorError):
    """The machine's clock contradicts the books; the message says how, and what to do."""


def check_clock(conn: Connection, *, now_ms: int) -> None:
    """Raises ClockError if the clock is far from the newest transfer, and that would cost money."""
    newest = list_transfers(conn, limit=1)
    if not newest:
        return
    latest_ms = newest[0].created_at_ns // 1_000_000
    if now_ms < latest_ms - BEHIND_MAX_MS:
        raise ClockError(
            f"this machine's clock says {_text(now_ms)}, but the newest transfer in the books is "
            f"from {_text(latest_ms)}: {_ADVICE}"
        )
    open_holds = count_open_holds(conn)
    if open_holds and now_ms > latest_ms + AHEAD_MAX_MS:
        raise ClockError(
            f"this machine's clock says {_text(now_ms)}, more than a day after the newest transfer "
            f"in the books ({_text(latest_ms)}), and {open_holds} open holds would expire: "
            f"{_ADVICE}"
        )


def _text(stamp_ms: int) -> str:
    return datetime.fromtimestamp(stamp_ms / 1_000, UTC).isoformat(" ", "seconds")
