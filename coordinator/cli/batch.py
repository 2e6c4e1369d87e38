"""`coordinator batch run`: many requests at once, at the batch price, from a file or a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.buyer import BuyerOptions, takes_buyer
from coordinator.cli.options import CommandError, Json, check_model
from protocol.programs.commands import UsageError
from protocol.programs.output import print_json, say

if TYPE_CHECKING:
    from coordinator.batches.local_run import LocalProgress
    from coordinator.cli.answer_file import AnswerFile, Taken
    from coordinator.cli.batch_files import BatchSource
    from coordinator.cli.market_session import MarketSession

app = typer.Typer(help="Run many requests where seats are idle, at the batch price.")

_REFRESH_S = 0.2


def _check_optional(name: str | None) -> str | None:
    return None if name is None else check_model(name)


@app.callback()
def _group() -> None:
    """A group, although it has one command so far."""


@app.command("run")
@takes_buyer
def run(
    buyer: BuyerOptions,
    file: Annotated[
        Path,
        typer.Argument(
            help="Requests as lines of JSON (as for /v1/batches), a table (CSV or lines of JSON, "
            "with --column), or a folder of pictures.",
            exists=True,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The model; else the one that each request names.", callback=_check_optional
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of a table whose text is the input.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Where answers go: lines of JSON, or .csv for a table."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with an output that is there: what has no answer is run, and what failed "
            "for a reason that passes (no node, no credits, no market) is run again.",
        ),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="As --resume, and run again what was refused, too. A line of which a part was "
            "paid is never run again.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer every request of a file, text of a column, or picture of a folder.

    Ctrl-C ends it in good order; --resume goes on from there.
    """
    import trio

    from coordinator.cli.answer_file import AnswerFile
    from coordinator.cli.batch_files import BatchSource

    if (file.is_dir() or column is not None) and model is None:
        raise UsageError("name the --model for a table or a folder")
    target = output if output is not None else file.with_name(f"{file.stem}.answers.jsonl")
    if target.exists() and not (resume or retry_failed):
        raise CommandError(f"{target} exists: --resume goes on with it; or name another --output")

    async def buy() -> "LocalProgress":
        async with buyer.open_market() as market:
            task = await market.task_of(model) if model is not None else None
            source = BatchSource(file, model, column, task)
            answers = AnswerFile(target, source)
            taken = answers.take_up(retry_failed=retry_failed)
            progress = await _answer(market, source, answers, taken, target)
            if as_json:
                print_json(_plain(progress, target))
            else:
                say(f"{progress}: {target}")
            return progress

    if trio.run(buy).failed:
        raise typer.Exit(1)


async def _answer(
    market: "MarketSession",
    source: "BatchSource",
    answers: "AnswerFile",
    taken: "Taken",
    target: Path,
) -> "LocalProgress":
    import trio

    from coordinator.batches.local_run import LocalProgress, LocalRun
    from coordinator.buyer.errors import JobFailed
    from coordinator.cli.market_session import until_interrupted
    from protocol.errors import leaves
    from protocol.programs.runtime import system_runtime

    progress = LocalProgress(
        source.count(), completed=len(taken.answered), failed=len(taken.failed)
    )
    runtime = system_runtime()
    local = LocalRun(market.client, market.key, answers, progress, runtime.clock, runtime.entropy)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show, progress)
            try:
                await local.run(source.lines(taken.done))
            except* JobFailed as group:
                failure = leaves(group)[0]
                raise CommandError(
                    f"{failure}; {progress} are in {target}: --resume goes on"
                ) from None
            nursery.cancel_scope.cancel()

    try:
        async with until_interrupted():
            await run()
    except KeyboardInterrupt:
        say(f"interrupted at {progress}: --resume goes on with {target}")
        raise
    return progress


async def _show(progress: "LocalProgress") -> None:
    """A bar on a terminal, nothing in a log."""
    import trio
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(str(progress), total=progress.total)
        while True:
            bar.update(task, completed=progress.done, description=str(progress))
            await trio.sleep(_REFRESH_S)


def _plain(progress: "LocalProgress", target: Path) -> dict[str, object]:
    return {
        "total": progress.total,
        "completed": progress.completed,
        "failed": progress.failed,
        "input_tokens": progress.input_tokens,
        "cached_tokens": progress.cached_tokens,
        "output_tokens": progress.output_tokens,
        "images": progress.images,
        "cost_nano": progress.cost_nano,
        "output": str(target),
    }
