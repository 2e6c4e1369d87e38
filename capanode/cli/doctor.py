"""`capanode doctor`: what works on this machine, and what to do about what does not."""

from dataclasses import asdict

import typer

from capanode.cli.options import ConfigFile, DataDir, Json, ModelStoreDir, load_config
from protocol.programs.output import print_json


def doctor(
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    model_store: ModelStoreDir = None,
    as_json: Json = False,
) -> None:
    """Check isolation, GPU, ports, models, clock and disk. Exits 1 if the node could not serve."""
    from capanode.doctor import examine

    diagnosis = examine(load_config(data_dir, config_file, model_store=model_store))
    if as_json:
        findings = [asdict(finding) for finding in diagnosis.findings]
        print_json({"can_serve": diagnosis.can_serve, "findings": findings})
    else:
        width = max(len(finding.subject) for finding in diagnosis.findings)
        for finding in diagnosis.findings:
            mark = "ok" if finding.works else "--"
            typer.echo(f"{mark}  {finding.subject:<{width}}  {finding.detail}")
            if finding.advice:
                typer.echo(f"    {'':<{width}}  → {finding.advice}")
        verdict = "can serve jobs" if diagnosis.can_serve else "cannot serve jobs yet"
        typer.echo(f"This machine {verdict}.")
    if not diagnosis.can_serve:
        raise typer.Exit(1)
