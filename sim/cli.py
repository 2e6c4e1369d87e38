"""The command line of the simulator: whole networks, on real processes or in virtual time.

Commands only read their options and print; what they do lives in the modules that they import, and
they import them when called, so that `--help` is instant.
"""

import json
import time
from typing import Annotated

import typer

from sim.bench.catalogue import BENCHMARKS, Benchmark, Figures

app = typer.Typer(
    name="sim",
    help="A whole CapaCloud network on this machine: real processes, or a world from one seed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")],
    as_json: Json = False,
) -> None:
    """Measure one thing against another, side by side in one run."""
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        known = ", ".join(BENCHMARKS)
        raise typer.BadParameter(f"there is no benchmark {name!r}; there are {known}")
    if not as_json:
        typer.echo(f"{benchmark.name}: {benchmark.summary} (up to a minute) …", err=True)
    started_s = time.monotonic()
    figures = benchmark.run()
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        _print_figures(benchmark, figures)
        typer.echo(f"took {time.monotonic() - started_s:.0f} s", err=True)


def _print_figures(benchmark: Benchmark, figures: Figures) -> None:
    width = max(map(len, figures))
    targets = {target.figure: target for target in benchmark.targets}
    for name, value in figures.items():
        line = f"{name:<{width}}  {value:>14,.3f}"
        if (target := targets.get(name)) is not None:
            sign = "≥" if target.at_least else "≤"
            verdict = "met" if target.is_met(figures) else "missed"
            line += f"   target {sign} {target.bound:g}: {verdict}"
        typer.echo(line)


def main() -> None:
    app()
