"""What `python -m sim mutants` prints."""

import json

import trio
import typer

from sim.mutants import MUTANTS
from sim.mutants.mutant import Mutant
from sim.mutants.runner import ControlFailed, MutantVerdict, default_jobs, run_mutants


def judge_mutants(words: list[str], *, jobs: int | None, as_json: bool) -> bool:
    """Run those whose names have one of `words`, or all. Returns whether every one was killed.

    Raises BadParameter for a word that no name has.
    """
    chosen = _chosen(words)
    try:
        verdicts = trio.run(_run, chosen, jobs or default_jobs(), as_json)
    except ControlFailed as error:
        typer.echo(f"error: {error}", err=as_json)
        return False
    survivors = [verdict.name for verdict in verdicts if not verdict.killed]
    if as_json:
        typer.echo(json.dumps({"mutants": [_plain(verdict) for verdict in verdicts]}))
    else:
        typer.echo(f"{len(verdicts) - len(survivors)} of {len(verdicts)} mutants killed")
    return not survivors


async def _run(
    chosen: list[Mutant], jobs: int, is_progress_on_stderr: bool
) -> tuple[MutantVerdict, ...]:
    def tell(line: str) -> None:
        typer.echo(line, err=is_progress_on_stderr)

    return await run_mutants(chosen, tell, jobs=jobs)


def _chosen(words: list[str]) -> list[Mutant]:
    for word in words:
        if not any(word in mutant.name for mutant in MUTANTS):
            raise typer.BadParameter(f"no mutant's name has {word!r} in it")
    return [m for m in MUTANTS if not words or any(word in m.name for word in words)]


def _plain(verdict: MutantVerdict) -> dict[str, object]:
    return {"name": verdict.name, "killed": verdict.killed, "by": verdict.by}
