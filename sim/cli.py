"""The command line of the simulator: whole networks, on real processes or in virtual time.

Commands only read their options and print; what they do lives in the modules that they import, and
they import them when called, so that `--help` is instant.
"""

import json
import logging
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import trio
import typer

from protocol.programs.commands import run_command
from protocol.programs.output import print_table
from sim.bench.catalogue import BENCHMARKS, Benchmark, Figures

app = typer.Typer(
    name="sim",
    help="A whole CapaCloud network on this machine: real processes, or a world from one seed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def _existing_store(models: Path) -> Path:
    if not models.is_dir():
        raise typer.BadParameter(
            f"there is no model store {models}: `make models` fills {DEFAULT_MODELS}"
        )
    return models


_STORE_HELP = "A model store; `make models` fills the default one."
Models = Annotated[Path, typer.Option("--models", help=_STORE_HELP, callback=_existing_store)]
# For what needs models in some cases only.
AnyModels = Annotated[Path, typer.Option("--models", help=_STORE_HELP)]
Folder = Annotated[
    Path | None,
    typer.Option("--folder", help="Keys, books and logs go here. Default: one that is removed."),
]
DEFAULT_MODELS = Path(".capacloud/models")


@app.command()
def demo(
    models: Models = DEFAULT_MODELS,
    folder: Folder = None,
    nodes: Annotated[int, typer.Option(min=1, max=8, help="How many nodes.")] = 3,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the market running.")] = False,
) -> None:
    """A market of real processes on this machine, and one job of each kind bought in it."""
    from sim.demo import DemoOptions, run_demo

    with _folder(folder) as place:
        options = DemoOptions(models.absolute(), place, nodes=nodes, keep=keep)
        trio.run(run_demo, options, typer.echo, _write)


@app.command()
def up(
    models: Models = DEFAULT_MODELS,
    folder: Folder = None,
    nodes: Annotated[int, typer.Option(min=1, max=32, help="How many nodes.")] = 3,
    http: Annotated[str, typer.Option(help="HOST:PORT of the API.")] = "127.0.0.1:0",
    as_json: Json = False,
) -> None:
    """Run a coordinator and N nodes, with different prices and distances, until Ctrl-C."""
    from sim.up import run_up

    with _folder(folder) as place:
        trio.run(run_up, models.absolute(), place, nodes, http, as_json)


@app.command()
def run(
    seed: Annotated[int, typer.Option(help="Decides everything that happens.")] = 1,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Write every event here, one per line.")
    ] = None,
    as_json: Json = False,
) -> None:
    """A whole market in virtual time, with faults; then quiet, and every book is checked.

    The same seed gives the same trace, byte for byte. Exits with 1 if an invariant was broken.
    """
    from sim.report import render, seed_line, to_json
    from sim.world import run_world

    typer.echo(seed_line(seed), err=as_json)
    try:
        with _trace_file(trace) as sink:
            result = run_world(seed, sink=sink)
        typer.echo(json.dumps(to_json(result)) if as_json else "\n".join(render(result)))
    finally:
        # Last as well as first: whatever scrolled by or went wrong, this is what to run again.
        typer.echo(seed_line(seed), err=as_json)
    if result.violations:
        raise typer.Exit(1)


@app.command()
def bench(
    name: Annotated[
        str | None, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}. Default: all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure one thing against another, side by side in one run; without a name, everything."""
    if name is None:
        _bench_all(as_json=as_json)
        return
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        known = ", ".join(BENCHMARKS)
        raise typer.BadParameter(f"there is no benchmark {name!r}; there are {known}")
    if not as_json:
        typer.echo(f"{benchmark.name}: {benchmark.summary} ({benchmark.takes}) …", err=True)
    started_s = time.monotonic()
    figures = benchmark.run()
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        _print_figures(benchmark, figures)
        typer.echo(f"took {time.monotonic() - started_s:.0f} s", err=True)


@app.command()
def siege(
    name: Annotated[
        str | None, typer.Argument(help="One attack, or a row such as A1. Default: all.")
    ] = None,
    models: AnyModels = DEFAULT_MODELS,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Attack a real market on this machine in every way that is known to us.

    One line for each attack says what an honest party saw without it and with it. Exits with 1 if
    one fell.
    """
    import structlog

    from sim.siege.runner import run_siege
    from sim.siege.table import ATTACKS, attacks_of

    attacks = attacks_of(name)
    if not attacks:
        known = ", ".join(attack.name for attack in ATTACKS)
        raise typer.BadParameter(f"there is no attack {name!r}; there are {known}")
    # What our own half of the network has to say is about the attackers.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with _folder(folder) as place:
        lines = trio.run(
            run_siege,
            attacks,
            place,
            models.absolute(),
            lambda line: typer.echo(str(line), err=as_json),
        )
    if as_json:
        typer.echo(json.dumps([line.to_json() for line in lines]))
    if not all(line.result.held for line in lines):
        raise typer.Exit(1)


def _bench_all(*, as_json: bool) -> None:
    """One after the other, so that none disturbs another; then one table of all figures."""
    found: dict[str, Figures] = {}
    for benchmark in BENCHMARKS.values():
        typer.echo(f"{benchmark.name}: {benchmark.summary} …", err=True)
        found[benchmark.name] = benchmark.run()
    if as_json:
        typer.echo(json.dumps(found))
        return
    rows = [
        (name, figure, f"{value:,.3f}", BENCHMARKS[name].verdict(figure, figures))
        for name, figures in found.items()
        for figure, value in figures.items()
    ]
    print_table(("benchmark", "figure", "value", "target"), rows)


def _print_figures(benchmark: Benchmark, figures: Figures) -> None:
    width = max(map(len, figures), default=0)
    for name, value in figures.items():
        verdict = benchmark.verdict(name, figures)
        line = f"{name:<{width}}  {value:>14,.3f}"
        typer.echo(f"{line}   target {verdict}" if verdict else line)


@app.command()
def chaos(
    minutes: Annotated[
        float, typer.Option(min=0.1, max=1_440, help="How long the clients ask.")
    ] = 11.0,
    seed: Annotated[int, typer.Option(help="Decides what is hit, and when.")] = 1,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Real processes under load, killed and frozen at random; then the books, judged by plain SQL.

    Exits with 1 if a target was missed.
    """
    from sim.chaos.report import misses, print_report, to_json
    from sim.chaos.run import ChaosOptions, run_chaos

    with _folder(folder) as place:
        options = ChaosOptions(place, seed, lasts_s=60 * minutes)
        result = trio.run(run_chaos, options, lambda text: typer.echo(text, err=True))
    figures = to_json(result)
    missed = misses(figures)
    if as_json:
        typer.echo(json.dumps(figures))
        for target in missed:
            typer.echo(f"missed: {target}", err=True)
    else:
        print_report(figures, missed)
    if missed:
        raise typer.Exit(1)


@app.command()
def soak(
    minutes: Annotated[
        float, typer.Option(min=0.5, max=10_080, help="How long the clients ask.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Decides what is asked, and when.")] = 1,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Real processes under load, let alone: the slopes of their memory, descriptors and tasks.

    Exits with 1 if one grows beyond its noise after the warm-up.
    """
    from sim.soak.report import print_report, to_json
    from sim.soak.run import SoakOptions, run_soak

    with _folder(folder) as place:
        options = SoakOptions(place, seed, lasts_s=60 * minutes)
        result = trio.run(run_soak, options, lambda text: typer.echo(text, err=True))
    figures = to_json(result)
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        print_report(figures)
    if figures["growing"]:
        raise typer.Exit(1)


@app.command()
def mutants(
    names: Annotated[
        list[str] | None, typer.Argument(help="Words of their names. Default: all mutants.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes at once. Default: all cores.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put deliberate bugs into the market, one at a time, and see whether something notices each.

    First the unchanged code has to pass every check that is used. Exits with 1 if a bug survives.
    """
    from sim.mutants.command import judge_mutants

    if not judge_mutants(names or [], jobs=jobs, as_json=as_json):
        raise typer.Exit(1)


@contextmanager
def _trace_file(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    try:
        file = path.open("w")
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written: {error.strerror}") from None
    with file:
        yield file


@contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    """The folder that was named, or a temporary one."""
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="capacloud-") as place:
        yield Path(place)


def _write(text: str) -> None:
    """Without a line end: a piece of a streamed answer."""
    typer.echo(text, nl=False)


def main() -> None:
    """Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    # A shell that starts us in the background has SIGINT ignored; then nothing could end us.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A polite signal to us is meant for the network that we started as well.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    run_command(app, lambda told: typer.echo(f"error: {told}", err=True))
