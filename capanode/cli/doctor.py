"""`capanode doctor`: what works on this machine, and what to do about what does not."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from capanode.config import PROGRAM, NodeConfig
from protocol.programs.output import print_json
from protocol.programs.setting_options import Json, takes_settings

if TYPE_CHECKING:
    from capanode.doctor import Diagnosis


@takes_settings(NodeConfig, PROGRAM)
def doctor(
    config: NodeConfig,
    as_json: Json = False,
    online: Annotated[
        bool, typer.Option("--online", help="Have the markets dial this machine, too.")
    ] = False,
) -> None:
    """Check this machine with the settings and options that `start` would use. Exits 1 if
    something here keeps a node from serving; hints and what is still to do are no failure."""
    from capanode.doctor import examine

    diagnosis = examine(config)
    if online:
        from capanode.reach.trial import reach_findings

        diagnosis = replace(diagnosis, findings=(*diagnosis.findings, *reach_findings(config)))
    if as_json:
        findings = [
            {**asdict(finding), "level": diagnosis.level_of(finding).value}
            for finding in diagnosis.findings
        ]
        print_json(
            {
                "can_serve": diagnosis.can_serve,
                "is_running": diagnosis.is_running,
                "findings": findings,
            }
        )
    else:
        _print(diagnosis)
    if diagnosis.blockers:
        raise typer.Exit(1)


def _print(diagnosis: "Diagnosis") -> None:
    width = max(len(finding.subject) for finding in diagnosis.findings)
    for finding in diagnosis.findings:
        mark = diagnosis.level_of(finding).value
        typer.echo(f"{mark:<7}  {finding.subject:<{width}}  {finding.detail}")
        if finding.advice:
            typer.echo(f"{'':<7}  {'':<{width}}  → {finding.advice}")
    typer.echo(diagnosis.verdict)
