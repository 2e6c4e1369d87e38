"""What every command that buys takes: whose key, at which market. Declared once.

The same commands belong to two programs. `coordinator` buys beside the market that it runs, and
`capacloud` in markets elsewhere; the latter names its settings in its
Typer's context.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from coordinator.buyer_config import BuyingConfig
from coordinator.cli.options import At, ConfigFile, DataDir, KeyFile, load_config
from coordinator.settings import CoordinatorConfig
from protocol.programs import setting_options

if TYPE_CHECKING:
    from coordinator.cli.market_session import MarketSession
    from protocol.keys import SigningKey


@dataclass(frozen=True, slots=True)
class BuyerSettings:
    """In a Typer's context: the settings of a program that only buys."""

    config: type
    program: str


@dataclass(frozen=True, slots=True)
class BuyerOptions:
    """Who buys: with the key at `key_path`, at the coordinator at `at`, or with the defaults of
    `config`."""

    config: BuyingConfig
    at: str | None
    key_path: Path | None

    def key(self) -> "SigningKey":
        """Made on first use. Raises KeyFileError."""
        from coordinator.cli.market_session import buyer_key

        return buyer_key(self.config, self.key_path)

    @property
    def market_config(self) -> CoordinatorConfig:
        """The settings of the market here; of commands of `coordinator` only."""
        assert isinstance(self.config, CoordinatorConfig), "a program that only buys has no books"
        return self.config

    def open_market(self) -> "AbstractAsyncContextManager[MarketSession]":
        from coordinator.cli.market_session import open_command_market

        return open_command_market(self.config, at=self.at, key_path=self.key_path)


def _options(
    context: typer.Context,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    key: KeyFile = None,
    coordinator: At = None,
) -> BuyerOptions:
    program = context.find_root().obj
    config: BuyingConfig
    if isinstance(program, BuyerSettings):
        config = setting_options.load_config(
            program.config, program.program, config_file, data_dir=data_dir
        )
    else:
        config = load_config(data_dir, config_file)
    return BuyerOptions(config, coordinator, key)


def takes_buyer(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say who buys, and call it with the `buyer` that they mean."""
    own = inspect.signature(command).parameters
    options = inspect.signature(_options).parameters

    @wraps(command)
    def run(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in options}
        command(buyer=_options(**chosen), **values)

    # The context has no default, and no place on the command line.
    context, *others = options.values()
    listed = [context, *(own[name] for name in own if name != "buyer"), *others]
    # Typer asks the function itself for its options, so the wrapper must not point at the original.
    del run.__wrapped__
    run.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]  # read by inspect
    run.__annotations__ = {option.name: option.annotation for option in listed}
    return run
