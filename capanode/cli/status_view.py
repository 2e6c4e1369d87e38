"""The status of a node in words and tables: what `capanode status` prints and `start` keeps on the
screen. Pure; the status comes as JSON has it, because it may come from another process."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from capanode.cli.standing_view import reach_text, standing_rows, tried_rows
from capanode.outbox_store import REFUSED, WAITING
from protocol.money import format_credits
from protocol.pricing import PriceSheet
from protocol.programs.output import bytes_text, price_text, short, time_text

FAILURES_SHOWN = 5
_STANDING = ("market", "sees it as", "model", "last jobs", "came here", "why others did not")
_UNPAID = (WAITING, "pending", REFUSED)

Plain = Mapping[str, Any]


class StatusTable(NamedTuple):
    """Headings, and rows of as many cells."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def facts_of(plain: Plain) -> dict[str, str]:
    """What is said of the node as a whole."""
    models = plain["models"]
    running, queued, slots = (sum(m[key] for m in models) for key in ("running", "queued", "slots"))
    facts = {
        "node": plain["peer_id"],
        "software": f"{plain['software']}, since {time_text(plain['started_at_ms'])} UTC",
        "addresses": ", ".join(plain["addresses"]),
        "region": plain["region"] or "-",
        "isolation": plain["isolation"],
        "state": state_text(plain),
        "jobs": f"{running}/{slots} running, {queued} queued, {plain['uploading']} uploading",
        "speed": f"{sum(m['tokens_per_s'] for m in models):.0f} tokens/s now",
        "earned": earned_text(plain),
        "reachable": reach_text(plain),
    }
    return {name: words for name, words in facts.items() if words}


def state_text(plain: Plain) -> str:
    if plain["draining"]:
        return "draining: finishes what runs, then ends"
    return f"paused: {plain['paused']}" if plain["paused"] else "serving"


def earned_text(plain: Plain) -> str:
    paid = plain["paid"]
    today, ever = format_credits(paid["today_nano"]), format_credits(paid["all_nano"])
    return f"{today} credits today (UTC), {ever} in all, after the fee"


def tables_of(plain: Plain) -> Iterator[StatusTable]:
    """Those that have something to say."""
    names = {model["digest"]: model["name"] for model in plain["models"]}
    for table in (
        _devices(plain["devices"]),
        _models(plain["models"]),
        _coordinators(plain["coordinators"]),
        StatusTable(("dialled by", "address", "outcome"), tuple(tried_rows(plain))),
        StatusTable(_STANDING, tuple(standing_rows(plain["coordinators"], names))),
        _receipts(plain["earnings"]),
        _failures(plain["failures"]),
    ):
        if table.rows:
            yield table


def _devices(devices: Sequence[Plain]) -> StatusTable:
    return StatusTable(
        ("device", "memory", "of it for models", "models"),
        tuple(
            (
                d["name"],
                bytes_text(d["memory_bytes"]),
                bytes_text(d["promised_bytes"]),
                ", ".join(d["models"]),
            )
            for d in devices
        ),
    )


def _models(models: Sequence[Plain]) -> StatusTable:
    return StatusTable(
        ("model", "state", "running", "queued", "tokens/s", "jobs", "price in credits"),
        tuple(
            (
                m["name"],
                _state_of(m),
                f"{m['running']}/{m['slots']}",
                str(m["queued"]),
                f"{m['tokens_per_s']:.0f}",
                str(m["jobs_done"]),
                price_text(PriceSheet(**m["price"])),
            )
            for m in models
        ),
    )


def _state_of(model: Plain) -> str:
    load_ms = model["load_ms"]
    return f"{model['state']}, loads in {load_ms / 1_000:.1f} s" if load_ms else str(model["state"])


def _coordinators(coordinators: Sequence[Plain]) -> StatusTable:
    return StatusTable(
        ("coordinator", "state", "receipts", "error"),
        tuple(
            (short(c["peer_id"]), c["state"], str(c["receipts_handed_in"]), c["error"] or "-")
            for c in coordinators
        ),
    )


def _receipts(earnings: Sequence[Plain]) -> StatusTable:
    """`pending` waits for the client's word, `waiting` for the coordinator; `refused` is not paid.
    What was paid is told as a whole."""
    return StatusTable(
        ("receipts not paid yet, at", "state", "jobs", "credits billed"),
        tuple(
            (
                short(e["coordinator"]),
                e["state"],
                str(e["jobs"]),
                format_credits(e["amount_nano"]),
            )
            for e in earnings
            if e["state"] in _UNPAID
        ),
    )


def _failures(failures: Sequence[Plain]) -> StatusTable:
    return StatusTable(
        ("last refusals", "job", "code", "message"),
        tuple(
            (f"{time_text(f['at_ms'])} UTC", f["job_id"] or "-", f["code"], f["message"])
            for f in failures[-FAILURES_SHOWN:]
        ),
    )
