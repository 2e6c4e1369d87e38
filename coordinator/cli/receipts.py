"""`coordinator receipts`: the signed evidence behind every payment, and checking it anywhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.buyer import BuyerOptions, takes_buyer
from coordinator.cli.jobs import OfAccount, find_the_job
from coordinator.cli.options import CommandError, Json, read_books
from coordinator.cli.own import print_own_evidence
from protocol.programs.output import credits_text, print_facts, print_json

if TYPE_CHECKING:
    from coordinator.db.engine import Connection
    from protocol.countersigning import Proof
    from protocol.receipts import Evidence

app = typer.Typer(help="Receipts: export and verify them.", no_args_is_help=True)


@app.command()
@takes_buyer
def export(
    buyer: BuyerOptions,
    job_id: Annotated[str, typer.Argument(help="The job's id.")],
    account: OfAccount = None,
) -> None:
    """Print the signed messages of a job's last receipt, for `receipts verify` anywhere: from the
    books here, or of a job of your own at --coordinator."""
    from coordinator.db.leases import find_lease
    from coordinator.db.receipts import list_receipts_of
    from coordinator.settling.evidence import write_evidence

    if buyer.at is not None:
        print_own_evidence(buyer, job_id)
        return

    def query(conn: "Connection") -> str:
        job = find_the_job(conn, job_id, account)
        receipts = list_receipts_of(conn, job.client, job.job_id)
        stored = receipts[-1] if receipts else None
        lease = find_lease(conn, stored.lease_id) if stored is not None else None
        if stored is None or lease is None:
            raise CommandError(f"there is no receipt for a job {job_id!r}")
        return write_evidence(
            job.request,
            lease.envelope,
            stored.receipt,
            acceptance=stored.acceptance,
            delivery=lease.delivery,
        )

    typer.echo(read_books(buyer.market_config, query), nl=False)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="What `receipts export` printed; - for stdin.")],
    as_json: Json = False,
) -> None:
    """Check every signature and that the messages belong together. Needs no network, no books."""
    from coordinator.settling.evidence import read_evidence
    from protocol.receipts import verify_chain

    try:
        text = typer.get_text_stream("stdin").read() if str(file) == "-" else file.read_text()
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandError(f"cannot read {file}: it is not text") from None
    evidence = read_evidence(text)
    facts = _facts(evidence, verify_chain(evidence))
    if as_json:
        print_json({"valid": True, **facts})
        return
    typer.echo("valid: every signature and every link holds")
    print_facts(facts | {"amount": credits_text(evidence.receipt.message.amount_nano)})


def _facts(evidence: "Evidence", proof: "Proof") -> dict[str, object]:
    billed = evidence.receipt.message
    accepted = evidence.acceptance
    agrees = "not there" if accepted is None else "yes" if accepted.message.agrees else "no"
    facts: dict[str, object] = {
        "job": billed.job_id,
        "client": billed.client,
        "node": billed.node,
        "coordinator": billed.coordinator,
        "model": billed.model_digest,
        "finish": billed.finish.value,
        "input_tokens": billed.units.input_tokens,
        "cached_tokens": billed.units.cached_tokens,
        "output_tokens": billed.units.output_tokens,
        "images": billed.units.images,
        "tensor_elements": billed.units.tensor_elements,
        "amount_nano": billed.amount_nano,
        "client_agrees": agrees,
        "client_opened": "yes" if proof.is_opened else "no",
        "signed_input_tokens": proof.input_tokens_min,
        "signed_output_tokens": proof.output_tokens,
    }
    if evidence.delivery is not None:
        got = evidence.delivery.message.units
        facts |= {"got_input_tokens": got.input_tokens, "got_output_tokens": got.output_tokens}
    return facts
