"""`capanode init`: a folder with a key and a commented configuration."""

import json

import typer

from capanode.cli.options import Announce, Coordinators, DataDir, Json, Listen, Region, load_config
from capanode.config import CONFIG_NAME, Config, new_config_text
from protocol.programs.keyfile import load_or_create_key_file
from protocol.programs.output import print_json, say


def init(
    data_dir: DataDir = None,
    listen: Listen = None,
    announce: Announce = None,
    coordinator: Coordinators = None,
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Set a node up: make its key and its configuration. Running it again changes neither."""
    config = load_config(
        data_dir, listen=listen, announce=announce, coordinators=coordinator, region=region
    )
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
    if not is_new_file and any((listen, announce, coordinator, region)):
        say("the options of this command change nothing in a configuration that exists: edit it")
    typer.echo(key.peer_id)
    say("next: `capanode models pull NAME`, `capanode doctor`, `capanode start`")


def _write_config(config: Config) -> bool:
    """Write what was chosen on the command line; False if there is a configuration already."""
    literals = {
        "listen": json.dumps(list(config.listen)),
        "announce": json.dumps(list(config.announce)),
        "coordinators": json.dumps([str(c) for c in config.coordinators]),
        "region": json.dumps(config.region, ensure_ascii=False),
    }
    chosen = {
        name: literal
        for name, literal in literals.items()
        if config.sources[name].startswith("flag")
    }
    try:
        with (config.data_dir / CONFIG_NAME).open("x", encoding="utf-8") as file:
            file.write(new_config_text(chosen))
    except FileExistsError:
        return False
    return True
