"""What a buyer sees of its own purchases, at any coordinator: `jobs` and `receipts` with
`--coordinator`, and those of `capacloud`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.buyer import BuyerOptions, takes_buyer
from coordinator.cli.options import Json
from protocol.errors import RemoteProtocolError
from protocol.ids import JobId, parse_ulid
from protocol.money import format_credits
from protocol.programs.commands import UsageError
from protocol.programs.output import print_facts, print_json, print_table, short, time_text
from protocol.services import JOBS_PAGE_MAX, EvidenceAsk, JobAsk, JobsAsk

if TYPE_CHECKING:
    from protocol.services import EvidenceReply, JobReply, JobSummary

jobs_app = typer.Typer(help="Your jobs: list them, look at one.", no_args_is_help=True)
receipts_app = typer.Typer(help="Receipts of your jobs.", no_args_is_help=True)

OwnJob = Annotated[str, typer.Argument(help="The job's id, or that of an answer.")]


@jobs_app.command("list")
@takes_buyer
def list_own(
    buyer: BuyerOptions,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many, the latest.")] = 20,
    before: Annotated[str | None, typer.Option(help="Only jobs older than this id.")] = None,
    as_json: Json = False,
) -> None:
    """Your newest jobs."""
    show_own_jobs(buyer, limit=limit, before=before, as_json=as_json)


@jobs_app.command("show")
@takes_buyer
def show_own(buyer: BuyerOptions, job_id: OwnJob, as_json: Json = False) -> None:
    """One of your jobs with every attempt at it."""
    show_own_job(buyer, job_id, as_json=as_json)


@receipts_app.command("export")
@takes_buyer
def export_own(buyer: BuyerOptions, job_id: OwnJob) -> None:
    """Print the signed messages of a job's last receipt, for `receipts verify` anywhere."""
    print_own_evidence(buyer, job_id)


def show_own_jobs(buyer: BuyerOptions, *, limit: int, before: str | None, as_json: bool) -> None:
    import trio

    older = "" if before is None else read_own_id(before)

    async def ask() -> "list[JobSummary]":
        found: list[JobSummary] = []
        after = str(older)
        async with buyer.open_market() as market:
            while len(found) < limit:
                size = min(JOBS_PAGE_MAX, limit - len(found))
                page = await market.leaser.jobs(JobsAsk(after, size))
                found += page.jobs
                after = page.next_before
                if not after:
                    break
        return found

    found = trio.run(ask)
    if as_json:
        print_json([_plain(job) for job in found])
        return
    print_table(
        ("job", "created", "state", "task", "model", "in", "cached", "out", "credits"),
        [
            (
                job.job_id,
                time_text(job.created_at_ms),
                job.state,
                job.task.value,
                job.model if len(job.model) < 40 else short(job.model),
                job.units.input_tokens,
                job.units.cached_tokens,
                job.units.output_tokens,
                format_credits(job.amount_nano),
            )
            for job in found
        ],
    )


def show_own_job(buyer: BuyerOptions, text: str, *, as_json: bool) -> None:
    import trio

    job_id = read_own_id(text)

    async def ask() -> "JobReply":
        async with buyer.open_market() as market:
            return await market.leaser.job(JobAsk(job_id))

    found = trio.run(ask)
    job = found.job
    if as_json:
        print_json(_plain(job) | {"attempts": [asdict(attempt) for attempt in found.attempts]})
        return
    print_facts(
        {
            "job": job.job_id,
            "state": job.state,
            "task": job.task.value,
            "model": job.model,
            "created": time_text(job.created_at_ms),
            "ended": time_text(job.ended_at_ms or None),
            "error": job.error_code or "-",
            "paid": f"{format_credits(job.amount_nano)} credits",
        }
    )
    print_table(
        (
            "attempt",
            "node",
            "state",
            "ended as",
            "in",
            "cached",
            "out",
            "paid",
            "first output",
            "receipt",
        ),
        [
            (
                attempt.attempt,
                short(attempt.node),
                attempt.state,
                attempt.code or attempt.finish or "-",
                attempt.units.input_tokens,
                attempt.units.cached_tokens,
                attempt.units.output_tokens,
                format_credits(attempt.amount_nano),
                f"{attempt.first_output_ms} ms" if attempt.first_output_ms else "-",
                attempt.receipt_state or "none",
            )
            for attempt in found.attempts
        ],
    )


def print_own_evidence(buyer: BuyerOptions, text: str) -> None:
    import trio

    from coordinator.settling.evidence import write_evidence

    job_id = read_own_id(text)

    async def ask() -> "EvidenceReply":
        async with buyer.open_market() as market:
            return await market.leaser.evidence(EvidenceAsk(job_id))

    found = trio.run(ask)
    written = write_evidence(
        found.request,
        found.lease,
        found.receipt,
        acceptance=found.acceptance or None,
        delivery=found.delivery or None,
    )
    typer.echo(written, nl=False)


def read_own_id(text: str) -> JobId:
    """Raises UsageError."""
    try:
        return JobId(parse_ulid(text.rpartition("-")[2]))
    except RemoteProtocolError:
        raise UsageError(f"{text[:64]!r} is not the id of a job") from None


def _plain(job: "JobSummary") -> dict[str, object]:
    plain = asdict(job)
    units = plain.pop("units")
    return {**plain, "ended_at_ms": job.ended_at_ms or None, **units}
