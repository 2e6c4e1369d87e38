"""`coordinator submit`: one job of any kind, from an argument, a file or a pipe."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.buyer.units import units_of
from coordinator.cli.constraints import takes_constraints
from coordinator.cli.options import (
    At,
    CommandError,
    ConfigFile,
    DataDir,
    Goal,
    Json,
    KeyFile,
    MaxTokens,
    Model,
    Temperature,
    load_config,
)
from coordinator.cli.results import outcome_plain, print_outcome
from coordinator.cli.tasks import TASK_COMMANDS, InputOptions, read_input
from protocol.generation import SEED_MAX
from protocol.limits import PAYLOAD_BYTES_MAX
from protocol.messages import Constraints, Objective, Task
from protocol.payload import JobInput
from protocol.programs.commands import UsageError
from protocol.programs.output import print_json, write_answer

if TYPE_CHECKING:
    from coordinator.buyer.spec import JobSpec
    from coordinator.cli.market_session import MarketSession


@takes_constraints
def submit(
    model: Model,
    constraints: Constraints,
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text; else --input, or what is piped in.", show_default=False),
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
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    key: KeyFile = None,
    coordinator: At = None,
    as_json: Json = False,
) -> None:
    """Run one job: a prompt, texts to embed (one a line), an image, or tensors as JSON."""
    import trio

    from coordinator.cli.market_session import open_command_market, until_interrupted

    content = _read_content(prompt, input_file)
    options = InputOptions(max_tokens, temperature, seed, top_k, raw)

    async def buy() -> None:
        config = load_config(data_dir, config_file)
        async with open_command_market(config, at=coordinator, key_path=key) as market:
            task = await market.task_of(model)
            job_input = read_input(task, content, options)
            spec = _spec(model, task, job_input, objective, constraints, deadline_s)
            async with until_interrupted():
                await _run(market, spec, as_json)

    trio.run(buy)


async def _run(market: "MarketSession", spec: "JobSpec", as_json: bool) -> None:
    import trio

    started_at = trio.current_time()
    chunks = []
    async with market.client.buy(spec, market.key) as stream:
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


def _read_content(prompt: str | None, file: Path | None) -> bytes:
    if prompt is not None and file is not None:
        raise UsageError("give either a prompt or --input")
    if prompt is None and file is None and sys.stdin.isatty():
        raise UsageError("give a prompt, --input FILE, or pipe the input in")
    content = prompt.encode() if prompt is not None else _read_file(file)
    if not content:
        raise CommandError("the input is empty")
    if len(content) > PAYLOAD_BYTES_MAX:
        raise CommandError(f"the input has {len(content)} bytes; up to {PAYLOAD_BYTES_MAX} can go")
    return content


def _read_file(file: Path | None) -> bytes:
    try:
        is_piped = file is None or str(file) == "-"
        return sys.stdin.buffer.read() if is_piped else Path(str(file)).read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from None
