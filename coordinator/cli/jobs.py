"""`coordinator jobs`: what was bought, where it ran, and how it ended."""

from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.buyer import BuyerOptions, takes_buyer
from coordinator.cli.options import CommandError, Json, read_books
from coordinator.cli.own import show_own_job, show_own_jobs
from coordinator.ledger.accounts import account_of
from protocol.ids import JobId, PeerId
from protocol.job_state import JobState
from protocol.money import format_credits
from protocol.programs.commands import UsageError
from protocol.programs.output import print_facts, print_json, print_table, short, time_text

if TYPE_CHECKING:
    from coordinator.db.engine import Connection
    from coordinator.db.jobs import StoredJob
    from coordinator.db.leases import StoredLease
    from coordinator.db.receipts import StoredReceipt

app = typer.Typer(help="Jobs: list them, look at one.", no_args_is_help=True)

OfAccount = Annotated[
    str | None,
    typer.Option("--account", help="Whose job, if several clients have chosen the same id."),
]


def find_the_job(conn: "Connection", job_id: str, account: str | None) -> "StoredJob":
    """The job with this id, of one account if it is named. Raises CommandError, AccountError."""
    from coordinator.accounts import find_by_name
    from coordinator.db.jobs import find_jobs

    found = find_jobs(conn, JobId(job_id))
    if account is not None:
        client = find_by_name(conn, account).id
        found = [job for job in found if account_of(job.client) == client]
    if not found:
        raise CommandError(f"there is no job {job_id!r}: `coordinator jobs list` lists them")
    if len(found) > 1:
        clients = ", ".join(job.client for job in found)
        raise CommandError(f"several clients have a job {job_id}: add --account, one of {clients}")
    return found[0]


@app.command("list")
@takes_buyer
def list_command(
    buyer: BuyerOptions,
    account: Annotated[str | None, typer.Option(help="Only of this account.")] = None,
    state: Annotated[JobState | None, typer.Option(help="Only in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many, the latest.")] = 20,
    before: Annotated[str | None, typer.Option(help="Only jobs older than this id.")] = None,
    as_json: Json = False,
) -> None:
    """The newest jobs: of all clients in the books here, or your own at --coordinator."""
    from coordinator.accounts import find_by_name
    from coordinator.db.jobs import list_jobs
    from coordinator.db.receipts import list_receipts_of

    if buyer.at is not None:
        if account is not None or state is not None:
            raise UsageError("--account and --state are for the books here, not for --coordinator")
        show_own_jobs(buyer, limit=limit, before=before, as_json=as_json)
        return

    def query(conn: "Connection") -> "list[tuple[StoredJob, list[StoredReceipt]]]":
        client = PeerId(find_by_name(conn, account).id) if account is not None else None
        older = JobId(before) if before is not None else None
        found = list_jobs(conn, client=client, state=state, before=older, limit=limit)
        return [(job, list_receipts_of(conn, job.client, job.job_id)) for job in found]

    found = read_books(buyer.market_config, query)
    if as_json:
        print_json([_plain_job(job, receipts) for job, receipts in found])
        return
    print_table(
        ("job", "created", "state", "task", "client", "node", "in", "cached", "out", "credits"),
        [
            (
                job.job_id,
                time_text(job.created_at_ms),
                job.state.value,
                job.task.value,
                short(job.client),
                ", ".join(short(receipt.node) for receipt in receipts) or "-",
                sum(receipt.units.input_tokens for receipt in receipts),
                sum(receipt.units.cached_tokens for receipt in receipts),
                sum(receipt.units.output_tokens for receipt in receipts),
                format_credits(sum(receipt.amount_nano for receipt in receipts)),
            )
            for job, receipts in found
        ],
    )


@app.command()
@takes_buyer
def show(
    buyer: BuyerOptions,
    job_id: Annotated[str, typer.Argument(help="The job's id.")],
    account: OfAccount = None,
    as_json: Json = False,
) -> None:
    """One job with every attempt at it: in the books here, or one of your own at --coordinator."""
    from coordinator.db.leases import list_leases_of
    from coordinator.db.receipts import list_receipts_of

    if buyer.at is not None:
        show_own_job(buyer, job_id, as_json=as_json)
        return

    def query(
        conn: "Connection",
    ) -> "tuple[StoredJob, list[StoredLease], list[StoredReceipt]]":
        job = find_the_job(conn, job_id, account)
        names = (job.client, job.job_id)
        return job, list_leases_of(conn, *names), list_receipts_of(conn, *names)

    job, leases, receipts = read_books(buyer.market_config, query)
    if as_json:
        plain = _plain_job(job, receipts)
        print_json(plain | {"attempts": [_plain_lease(lease) for lease in leases]})
        return
    print_facts(
        {
            "job": job.job_id,
            "state": job.state.value,
            "client": job.client,
            "task": job.task.value,
            "model": job.model_digest,
            "objective": job.objective.value,
            "created": time_text(job.created_at_ms),
            "ended": time_text(job.ended_at_ms),
            "error": job.error_code or "-",
        }
    )
    by_lease = {receipt.lease_id: receipt for receipt in receipts}
    print_table(
        (
            "attempt",
            "lease",
            "node",
            "hold",
            "state",
            "in",
            "cached",
            "out",
            "images",
            "elements",
            "paid",
            "receipt",
        ),
        [_attempt_row(lease, by_lease.get(lease.lease_id)) for lease in leases],
    )


def _attempt_row(lease: "StoredLease", receipt: "StoredReceipt | None") -> tuple[object, ...]:
    head = (
        lease.attempt,
        lease.lease_id,
        short(lease.node),
        format_credits(lease.ceiling_nano),
        lease.state.value,
    )
    if receipt is None:
        return (*head, "-", "-", "-", "-", "-", "-", "none")
    units = receipt.units
    paid = format_credits(receipt.amount_nano)
    counts = (units.input_tokens, units.cached_tokens, units.output_tokens)
    return (
        *(*head, *counts),
        units.images,
        units.tensor_elements,
        paid,
        receipt.state.value,
    )


def _plain_job(job: "StoredJob", receipts: "list[StoredReceipt]") -> dict[str, object]:
    return {
        "job_id": job.job_id,
        "state": job.state.value,
        "client": job.client,
        "task": job.task.value,
        "model_digest": job.model_digest,
        "objective": job.objective.value,
        "created_at_ms": job.created_at_ms,
        "ended_at_ms": job.ended_at_ms,
        "error_code": job.error_code,
        "receipts": [
            {
                "lease_id": receipt.lease_id,
                "node": receipt.node,
                "input_tokens": receipt.units.input_tokens,
                "cached_tokens": receipt.units.cached_tokens,
                "output_tokens": receipt.units.output_tokens,
                "images": receipt.units.images,
                "tensor_elements": receipt.units.tensor_elements,
                "amount_nano": receipt.amount_nano,
                "state": receipt.state.value,
            }
            for receipt in receipts
        ],
    }


def _plain_lease(lease: "StoredLease") -> dict[str, object]:
    return {
        "lease_id": lease.lease_id,
        "attempt": lease.attempt,
        "node": lease.node,
        "ceiling_nano": lease.ceiling_nano,
        "state": lease.state.value,
    }
