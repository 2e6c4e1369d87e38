"""`capanode earnings`: what the jobs of this node came to."""

import time
from dataclasses import asdict
from typing import Annotated

import typer

from capanode.cli.options import ConfigFile, DataDir, Json, load_config
from capanode.earnings import By, EarningsRow, add_up, parse_since
from capanode.outbox_store import EARLIER, read_paid_days
from protocol.money import format_credits
from protocol.programs.output import print_json, print_table, say


def earnings(
    by: Annotated[By, typer.Option(help="What to add up by.")] = By.DAY,
    since: Annotated[
        str | None,
        typer.Option(help="From this day on: 2026-11-01, or 7d for days ago.", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """What coordinators have paid, after their fees, whether the node runs or not. Days are those
    of UTC."""
    first_day = EARLIER
    if since is not None:
        try:
            first_day = parse_since(since, now_ms=int(time.time() * 1_000))
        except ValueError as error:
            raise typer.BadParameter(f"{error}, not {since[:50]!r}", param_hint="--since") from None
    config = load_config(data_dir, config_file)
    rows = add_up(read_paid_days(config.outbox_path), by, since_day=first_day)
    paid_nano = sum(row.paid_nano for row in rows)
    if as_json:
        print_json({"by": by.value, "paid_nano": paid_nano, "rows": [asdict(row) for row in rows]})
        return
    if not rows:
        say("nothing was paid yet; `capanode status` shows receipts that wait")
        return
    total = EarningsRow(
        "in all", sum(r.jobs for r in rows), sum(r.billed_nano for r in rows), paid_nano
    )
    print_table(
        (by.value, "jobs", "credits billed", "credits after the fee"),
        [
            (row.name, row.jobs, format_credits(row.billed_nano), format_credits(row.paid_nano))
            for row in (*rows, total)
        ],
    )
