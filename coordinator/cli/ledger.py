"""`coordinator ledger`: the books themselves, and the proof that they are right."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.options import ConfigFile, DataDir, Json, load_config, read_books
from protocol.money import format_credits
from protocol.programs.output import credits_text, print_json, print_table, short, time_text

if TYPE_CHECKING:
    from coordinator.db.engine import Connection
    from coordinator.ledger.transfers import RecordedTransfer

app = typer.Typer(help="The ledger: transfers, and an audit of them all.", no_args_is_help=True)


@app.command()
def show(
    account: Annotated[
        str | None, typer.Argument(help="Only transfers of this account: a name or an id.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the latest.")] = 30,
    before: Annotated[int | None, typer.Option(help="Only transfers before this number.")] = None,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """The newest transfers."""
    from coordinator.accounts import find_by_name
    from coordinator.db.transfers import list_transfers

    def query(conn: "Connection") -> "list[RecordedTransfer]":
        account_id = find_by_name(conn, account).id if account is not None else None
        return list_transfers(conn, account=account_id, before=before, limit=limit)

    found = read_books(load_config(data_dir, config_file), query)
    if as_json:
        print_json([_plain(recorded) for recorded in found])
        return
    print_table(
        ("#", "time", "code", "from", "to", "credits", "job"),
        [
            (
                recorded.sequence,
                time_text(recorded.created_at_ns // 1_000_000),
                recorded.transfer.code.value,
                short(recorded.transfer.debit),
                short(recorded.transfer.credit),
                format_credits(recorded.transfer.amount_nano),
                recorded.transfer.job_id or "-",
            )
            for recorded in found
        ],
    )


@app.command("audit")
def audit_command(
    data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False
) -> None:
    """Prove that balances follow from transfers. Exit code 1 if anything is wrong."""
    from coordinator.audit.books import audit
    from protocol.programs.keyfile import load_key_file

    config = load_config(data_dir, config_file)
    has_key = config.key_path.exists()
    signer = load_key_file(config.key_path).peer_id if has_key else None
    report = read_books(config, partial(audit, signer=signer))
    if as_json:
        print_json(
            {
                "green": report.is_green,
                "transfers": report.transfers,
                "accounts": report.accounts,
                "open_holds": report.open_holds,
                "issued_nano": report.issued_nano,
                "held_nano": report.held_nano,
                "findings": [
                    {"check": f.check.value, "subject": f.subject, "message": f.message}
                    for f in report.findings
                ],
            }
        )
    else:
        for finding in report.findings:
            typer.echo(f"{finding.check.value}  {finding.subject}  {finding.message}")
        verdict = "green" if report.is_green else f"{len(report.findings)} findings"
        typer.echo(
            f"audit: {verdict}. {report.transfers} transfers, {report.accounts} accounts, "
            f"{report.open_holds} open holds of {credits_text(report.held_nano)}, "
            f"{credits_text(report.issued_nano)} in circulation"
        )
    if not report.is_green:
        raise typer.Exit(1)


def _plain(recorded: "RecordedTransfer") -> dict[str, object]:
    return {
        "sequence": recorded.sequence,
        "created_at_ns": recorded.created_at_ns,
        **recorded.transfer._asdict(),
    }
