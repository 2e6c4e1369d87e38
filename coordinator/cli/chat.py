"""`chat`: talk to a model in the market, answers streaming in."""

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.units import units_of
from coordinator.cli.buyer import BuyerOptions, takes_buyer
from coordinator.cli.constraints import takes_constraints
from coordinator.cli.options import CommandError, Goal, MaxTokens, Model, Temperature
from coordinator.cli.results import print_outcome
from protocol.generation import ChatMessage, GenerationInput
from protocol.messages import Constraints, Objective, Task
from protocol.programs.output import complain, say, write_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.buyer.spec import JobSpec
    from coordinator.cli.console import Console
    from coordinator.cli.market_session import MarketSession

DEFAULT_MODEL = "smollm2-135m-instruct"
HELP = """\
/reset  forget what was said so far
/help   this
/exit   end; so does Ctrl-D
Ctrl-C ends an answer; what came of it is kept and paid. Arrows edit and recall lines."""


@takes_constraints
@takes_buyer
def chat(
    buyer: BuyerOptions,
    constraints: Constraints,
    model: Model = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    objective: Goal = Objective.LATENCY,
) -> None:
    """Talk to a model. Each answer says which node gave it, how fast, and for how much."""
    import trio

    from coordinator.cli.console import open_console
    from coordinator.cli.market_session import until_interrupted

    def spec_of(messages: tuple[ChatMessage, ...]) -> "JobSpec":
        job_input = GenerationInput(max_tokens, messages, temperature=temperature)
        return _spec(model, job_input, objective, constraints)

    async def talk() -> bool:
        async with buyer.open_market() as market:
            await _check_model(market, model)
            say(f"Talking to {model}. /help tells what else can be typed; /exit or Ctrl-D ends.")
            with open_console() as console:
                async with until_interrupted(console.on_interrupt):
                    return await _converse(market, console, system, spec_of)

    has_failed = trio.run(talk)
    # A script knows by the exit code alone that its last question has no answer.
    if has_failed and not sys.stdin.isatty():
        raise typer.Exit(1)


async def _check_model(market: "MarketSession", model: str) -> None:
    """Before the first question is typed. Raises CommandError."""
    task = await market.task_of(model)
    if task is not Task.CAUSAL_LM:
        raise CommandError(f"{model} cannot chat; `submit {model}` says what it takes")


async def _converse(
    market: "MarketSession",
    console: "Console",
    system: str | None,
    spec_of: "Callable[[tuple[ChatMessage, ...]], JobSpec]",
) -> bool:
    """Until the input ends. Whether the last question has no answer."""
    opening = (ChatMessage("system", system),) if system else ()
    history = opening
    has_failed = False
    while (line := await console.read_line()) is not None:
        match line.split(maxsplit=1):
            case []:
                continue
            case ["/exit" | "/quit" | "/bye", *_]:
                break
            case ["/help" | "/?", *_]:
                say(HELP)
                continue
            case ["/reset", *_]:
                history = opening
                say("Forgotten.")
                continue
            case [word, *_] if word.startswith("/") and word[1:].isalpha():
                complain(f"there is no command {word}: /help lists them")
                continue
        asked = (*history, ChatMessage("user", line))
        pieces: list[str] = []
        has_failed = False
        with console.answering() as scope:
            has_failed = not await _answer(market, spec_of(asked), pieces)
        if scope.cancelled_caught:
            typer.echo()
            say("[stopped]")
        if pieces:
            history = (*asked, ChatMessage("assistant", "".join(pieces)))
    return has_failed


async def _answer(market: "MarketSession", spec: "JobSpec", pieces: list[str]) -> bool:
    """Print an answer while it comes, and keep its `pieces`. Whether it is whole; the conversation
    can go on in any case."""
    import trio

    from coordinator.cli.progress import show_waiting

    started_at = trio.current_time()
    try:
        async with AsyncExitStack() as stack:
            async with show_waiting("waiting:"):
                stream = await stack.enter_async_context(market.client.buy(spec, market.key))
            first_output_ms = 1_000 * (trio.current_time() - started_at)
            async for chunk in stream:
                pieces.append(chunk.text)
                write_answer(chunk.text)
    except JobFailed as error:
        if pieces:
            typer.echo()
        complain(str(error))
        return False
    typer.echo()
    info, outcome = stream.ended()
    total_ms = 1_000 * (trio.current_time() - started_at)
    print_outcome(info, outcome, first_output_ms=first_output_ms, total_ms=total_ms)
    return True


def _spec(
    model: str, job_input: GenerationInput, objective: Objective, constraints: Constraints
) -> "JobSpec":
    from coordinator.buyer.spec import JobSpec

    units_max, units_expected = units_of(job_input)
    return JobSpec(
        model, Task.CAUSAL_LM, job_input, units_max, units_expected, objective, constraints
    )
