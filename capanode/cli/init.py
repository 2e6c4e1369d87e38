"""`capanode init`: a folder with a key and a commented configuration."""

import os

import typer

from capanode.config import CONFIG_NAME, PROGRAM, NodeConfig, new_node_config_text
from protocol.programs.output import print_json, say
from protocol.programs.setting_options import Json, takes_settings
from protocol.programs.settings import toml_literal

CHOSEN_AT_INIT = ("listen", "announce", "coordinators", "region")


@takes_settings(NodeConfig, PROGRAM, "data_dir", *CHOSEN_AT_INIT)
def init(config: NodeConfig, as_json: Json = False) -> None:
    """Set a node up: make its key and its configuration. Running it again changes neither."""
    from protocol.programs.keyfile import load_or_create_key_file

    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    is_new_key = not config.key_path.exists()
    key = load_or_create_key_file(config.key_path)
    path = config.data_dir / CONFIG_NAME
    is_new_file = _write_config(config)
    if as_json:
        print_json(
            {
                "peer_id": key.peer_id,
                "data_dir": str(config.data_dir),
                "config": str(path),
                "key_created": is_new_key,
                "config_created": is_new_file,
            }
        )
        return
    done = "made" if is_new_key else "kept"
    say(f"{done} the key {config.key_path}; back it up: it is the node's account")
    say(f"{'wrote' if is_new_file else 'kept'} the configuration {path}")
    if not is_new_file and _chosen(config):
        say("the options of this command change nothing in a configuration that exists: edit it")
    typer.echo(key.peer_id)
    say("next: `capanode models pull NAME`, `capanode doctor`, `capanode start`")


def _write_config(config: NodeConfig) -> bool:
    """Write what was chosen on the command line; False if there is a configuration already."""
    path = config.data_dir / CONFIG_NAME
    try:
        # Private from the beginning: a token may be written into it later.
        with open(path, "x", encoding="utf-8", opener=_open_private) as file:
            file.write(new_node_config_text(_chosen(config)))
    except FileExistsError:
        return False
    return True


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _chosen(config: NodeConfig) -> dict[str, str]:
    """TOML literals of what the command line gave."""
    return {
        name: toml_literal(NodeConfig, name, getattr(config, name))
        for name in CHOSEN_AT_INIT
        if config.sources[name].startswith("flag")
    }
