"""`coordinator chat`: talk to a model in the market, answers streaming in."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.units import units_of
from coordinator.cli.constraints import takes_constraints
from coordinator.cli.options import (
    At,
    CommandError,
    ConfigFile,
    DataDir,
    Goal,
    KeyFile,
    MaxTokens,
    Model,
    Temperature,
    load_config,
)
from coordinator.cli.results import print_outcome
from protocol.generation import ChatMessage, GenerationInput
from protocol.messages import Constraints, Objective, Task
from protocol.programs.output import complain, say, write_answer

if TYPE_CHECKING:
    from coordinator.buyer.spec import JobSpec
    from coordinator.cli.market_session import MarketSession

DEFAULT_MODEL = "smollm2-135m-instruct"
PROMPT = "you> "
HELP = "Empty line or Ctrl-D ends, /reset forgets what was said."


@takes_constraints
def chat(
    constraints: Constraints,
    model: Model = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    objective: Goal = Objective.LATENCY,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    key: KeyFile = None,
    coordinator: At = None,
) -> None:
    """Talk to a model. Each answer says which node gave it, how fast, and for how much."""
    import trio

    from coordinator.cli.market_session import open_command_market, until_interrupted

    opening = (ChatMessage("system", system),) if system else ()
    has_failed = False

    async def talk() -> None:
        nonlocal has_failed
        config = load_config(data_dir, config_file)
        async with (
            open_command_market(config, at=coordinator, key_path=key) as market,
            until_interrupted(),
        ):
            say(f"Talking to {model}. {HELP}")
            history = opening
            while (line := await _read_line()) is not None:
                if line == "/reset":
                    history = opening
                    continue
                asked = (*history, ChatMessage("user", line))
                job_input = GenerationInput(max_tokens, asked, temperature=temperature)
                answer = await _answer(market, _spec(model, job_input, objective, constraints))
                has_failed = answer is None
                if answer is not None:
                    history = (*asked, ChatMessage("assistant", answer))

    trio.run(talk)
    # A script knows by the exit code alone that its last question has no answer.
    if has_failed and not sys.stdin.isatty():
        raise typer.Exit(1)


async def _answer(market: "MarketSession", spec: "JobSpec") -> str | None:
    """Print an answer while it comes. None if there was none; the conversation can go on."""
    import trio

    started_at = trio.current_time()
    answer = ""
    try:
        async with market.client.buy(spec, market.key) as stream:
            first_output_ms = 1_000 * (trio.current_time() - started_at)
            async for chunk in stream:
                answer += chunk.text
                write_answer(chunk.text)
    except JobFailed as error:
        complain(str(error))
        return None
    typer.echo()
    info, outcome = stream.ended()
    total_ms = 1_000 * (trio.current_time() - started_at)
    print_outcome(info, outcome, first_output_ms=first_output_ms, total_ms=total_ms)
    return answer


def _spec(
    model: str, job_input: GenerationInput, objective: Objective, constraints: Constraints
) -> "JobSpec":
    from coordinator.buyer.spec import JobSpec

    units_max, units_expected = units_of(job_input)
    return JobSpec(
        model, Task.CAUSAL_LM, job_input, units_max, units_expected, objective, constraints
    )


async def _read_line() -> str | None:
    """A line from the terminal, or None at its end. The network goes on meanwhile.

    Raises CommandError if it is not text.
    """
    import trio

    def read() -> str | None:
        try:
            line = input(PROMPT if sys.stdin.isatty() else "").strip()
            line.encode()
        except EOFError:
            return None
        # In some locales what is no text is read as surrogates, and shows when it is encoded.
        except UnicodeError:
            raise CommandError("the input is not UTF-8 text") from None
        return line

    line = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
    return line or None
