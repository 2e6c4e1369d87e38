"""`capanode config`: what the settings are, where each came from, and how to change them."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from capanode.cli.options import ConfigFile, DataDir, Json, load_config
from capanode.config import PROGRAM, NodeConfig
from capanode.errors import NotRunningError
from capanode.status_socket import ask_node
from protocol.programs.output import print_json, say
from protocol.programs.setting_options import show_config
from protocol.programs.settings import SettingError, setting_literal
from protocol.programs.settings_file import set_in_text

MODELS = "models."
_PRIVATE_FILE = 0o600

app = typer.Typer(help="The settings.", no_args_is_help=True)


@app.command()
def show(data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False) -> None:
    """Every setting with its value, its source, its variable and its meaning."""
    show_config(load_config(data_dir, config_file), PROGRAM, as_json=as_json)


@app.command("set")
def set_command(
    name: Annotated[str, typer.Argument(help="A setting, or models.NAME.KEY for a model's.")],
    values: Annotated[list[str], typer.Argument(help="Its value; several for a list.")],
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Write a setting into the file; a node that runs takes it over at once if it can."""
    config = load_config(data_dir, config_file)
    keys = _keys(name)
    literal = setting_literal(NodeConfig, keys, values)
    _write(config, keys, literal)
    if source := config.sources.get(keys[0], ""):
        is_hidden = source.startswith(("flag", "environment"))
        if is_hidden and not as_json:
            say(f"the file has it now, but {source} still wins over the file")
    _tell(_reload(config), config, as_json=as_json)


@app.command()
def reload(data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False) -> None:
    """Let the node that runs read its file again, after you have edited it."""
    config = load_config(data_dir, config_file)
    _tell(ask_node(config.status_socket, "reload"), config, as_json=as_json)


def _keys(name: str) -> tuple[str, ...]:
    """Names of models may have points in them."""
    if not name.startswith(MODELS):
        return (name,)
    model, found, key = name.removeprefix(MODELS).rpartition(".")
    if not found:
        raise SettingError("a model's setting is models.NAME.KEY, such as models.a.slots")
    return ("models", model, key)


def _write(config: NodeConfig, keys: tuple[str, ...], literal: str) -> None:
    """The file is the old one or the new one at any moment, and the new one can be read. Raises
    SettingError."""
    path = config.file
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        edited = set_in_text(text, keys, literal)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{path} is not valid TOML: {error}") from None
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.touch(mode=_PRIVATE_FILE)
        draft.write_text(edited, encoding="utf-8")
        _check(config, draft, path)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _check(config: NodeConfig, draft: Path, path: Path) -> None:
    try:
        NodeConfig.resolve(file=draft, flags={"data_dir": config.data_dir})
    except SettingError as error:
        raise SettingError(str(error).replace(str(draft), str(path))) from None


def _reload(config: NodeConfig) -> Mapping[str, Any]:
    """Nothing is said by a node that does not run: it will read the file when it starts."""
    try:
        return ask_node(config.status_socket, "reload")
    except NotRunningError:
        return {}


def _tell(answer: Mapping[str, Any], config: NodeConfig, *, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(config.file), "node": answer or None})
        return
    say(f"{config.file} is written" if not answer else f"the node has read {config.file}")
    if answer.get("applied"):
        say(f"in force now: {', '.join(answer['applied'])}")
    if answer.get("at_restart"):
        say(f"in force after a restart of the node: {', '.join(answer['at_restart'])}")
