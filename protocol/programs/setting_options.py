"""The command line's side of the settings: an option per setting, and `config show`."""

import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from protocol.programs.output import print_json, print_table
from protocol.programs.settings import Setting, resolve_settings, settings_of

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Another configuration file.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

C = TypeVar("C")


def option(config: type, name: str) -> Any:
    """The annotation of a command's parameter that gives one setting."""
    one = next(one for one in settings_of(config) if one.name == name)
    kind: Any = list[str] | None if one.kind.is_list else str | None
    told = f"{one.meaning} May be repeated." if one.kind.is_list else one.meaning
    default = f" Default: {one.default_text}." if one.default_text else ""
    return Annotated[kind, typer.Option(one.flag, help=told + default, show_default=False)]


def load_config(config: type[C], program: str, file: Path | None = None, **flags: object) -> C:
    """Resolve a program's settings: the one place that reads the environment."""
    return resolve_settings(config, program, file=file, env=os.environ, flags=flags)


def takes_settings(
    config: type[C], program: str, *names: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option per setting (`names`, or every one that has a flag), and `--config`.

    The command's first parameter is the resolved `config`.
    """
    wanted = [s for s in settings_of(config) if s.flag and (not names or s.name in names)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(*, config_file: Path | None = None, **given: Any) -> None:
            flags = {one.name: given.pop(one.name) for one in wanted}
            command(load_config(config, program, config_file, **flags), **given)

        parameters = [*_parameters(config, wanted), *_own_parameters(command)]
        described: Any = run
        described.__signature__ = inspect.Signature(parameters)
        described.__annotations__ = {p.name: p.annotation for p in parameters}
        del described.__wrapped__
        return run

    return decorate


def show_config(config: Any, program: str, *, as_json: bool) -> None:
    """Print every setting with its value, its source, its variable and its meaning."""
    settings = settings_of(type(config))
    told = {one.name: one.kind.tell(getattr(config, one.name)) for one in settings}
    if as_json:
        print_json({name: {"value": told[name], "source": config.sources[name]} for name in told})
        return
    print_table(
        ("setting", "value", "from", "variable", "meaning"),
        [
            (
                one.name,
                told[one.name] or "-",
                config.sources[one.name],
                f"{program.upper()}_{one.name.upper()}",
                one.meaning,
            )
            for one in settings
        ],
    )


def _parameters(config: type, wanted: list[Setting]) -> list[inspect.Parameter]:
    annotations = {one.name: option(config, one.name) for one in wanted}
    annotations["config_file"] = ConfigFile
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in annotations.items()
    ]


def _own_parameters(command: Callable[..., None]) -> list[inspect.Parameter]:
    """What the command takes besides the settings, which are its first parameter."""
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    return [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
