"""`coordinator submit`: one job of any kind, from an argument, a file or a pipe."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.buyer.units import units_of
from coordinator.cli.buyer import BuyerOptions, takes_buyer
from coordinator.cli.constraints import takes_constraints
from coordinator.cli.options import Goal, Json, MaxTokens, Model, Temperature
from coordinator.cli.piped import read_content
from coordinator.cli.results import outcome_plain, print_outcome
from coordinator.cli.tasks import TASK_COMMANDS, InputOptions, read_input
from protocol.generation import SEED_MAX
from protocol.messages import Constraints, Objective, Task
from protocol.payload import JobInput
from protocol.programs.commands import UsageError
from protocol.programs.output import print_json, write_answer

if TYPE_CHECKING:
    from coordinator.buyer.spec import JobSpec
    from coordinator.cli.market_session import MarketSession


@takes_constraints
@takes_buyer
def submit(
    model: Model,
    buyer: BuyerOptions,
    constraints: Constraints,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="The text; what is piped in follows it. Else --input, or the pipe alone.",
            show_default=False,
        ),
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="Read the input from a file (- for stdin): text or an image."),
    ] = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 1.0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=SEED_MAX, help="The same seed, the same answer.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, max=1_000, help="Labels of an image.")] = 5,
    raw: Annotated[
        bool, typer.Option(help="Continue the text; do not answer it as a chat.")
    ] = False,
    objective: Goal = Objective.BALANCED,
    deadline_s: Annotated[
        float, typer.Option(min=1.0, max=600.0, help="When the whole answer has to be there.")
    ] = 120.0,
    as_json: Json = False,
) -> None:
    """Run one job: a prompt, texts to embed (one a line), an image, or tensors as JSON."""
    import trio

    from coordinator.cli.market_session import until_interrupted

    content = read_content(prompt, input_file)
    options = InputOptions(max_tokens, temperature, seed, top_k, raw)

    async def buy() -> None:
        async with buyer.open_market() as market:
            task = await market.task_of(model)
            if task is Task.IMAGE_CLASSIFICATION and prompt is not None:
                raise UsageError(f"{model} looks at images: give one with --input FILE")
            job_input = read_input(task, content, options)
            spec = _spec(model, task, job_input, objective, constraints, deadline_s)
            async with until_interrupted():
                await _run(market, spec, as_json)

    trio.run(buy)


async def _run(market: "MarketSession", spec: "JobSpec", as_json: bool) -> None:
    import trio

    from coordinator.cli.progress import show_waiting

    started_at = trio.current_time()
    chunks = []
    async with AsyncExitStack() as stack:
        async with show_waiting(f"waiting for {spec.model}:"):
            stream = await stack.enter_async_context(market.client.buy(spec, market.key))
        first_output_ms = 1_000 * (trio.current_time() - started_at)
        async for chunk in stream:
            chunks.append(chunk)
            if not as_json and chunk.text:
                write_answer(chunk.text)
    total_ms = 1_000 * (trio.current_time() - started_at)
    command = TASK_COMMANDS[spec.task]
    result = command.result(chunks)
    info, outcome = stream.ended()
    if as_json:
        print_json(result | {"job": outcome_plain(info, outcome)})
        return
    command.show(result)
    print_outcome(info, outcome, first_output_ms=first_output_ms, total_ms=total_ms)


def _spec(
    model: str,
    task: Task,
    job_input: JobInput,
    objective: Objective,
    constraints: Constraints,
    deadline_s: float,
) -> "JobSpec":
    from coordinator.buyer.spec import JobSpec

    units_max, units_expected = units_of(job_input)
    return JobSpec(
        model=model,
        task=task,
        job_input=job_input,
        units_max=units_max,
        units_expected=units_expected,
        objective=objective,
        constraints=constraints,
        deadline_s=deadline_s,
    )
