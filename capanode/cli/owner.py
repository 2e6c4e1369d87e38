"""`capanode pause`, `resume`, `drain` and `measure`: what the node that runs here is told."""

import time
from typing import Annotated, Any

import typer

from capanode.cli.options import ConfigFile, DataDir, Json, load_config
from capanode.config import DRAIN_S_MAX, NodeConfig
from capanode.errors import NotRunningError
from capanode.status_socket import ask_node, ask_status
from protocol.programs.output import print_json, say

_LOOK_EVERY_S = 0.5


def pause(data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False) -> None:
    """Take no more jobs until `capanode resume`, also after a restart. Those that run go on."""
    answer = ask_node(load_config(data_dir, config_file).status_socket, "pause")
    _tell(answer, f"paused; {_jobs(answer['running'])} still here", as_json=as_json)


def resume(data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False) -> None:
    """Take jobs again after `capanode pause`."""
    answer = ask_node(load_config(data_dir, config_file).status_socket, "resume")
    words = f"still paused: {answer['paused']}" if answer["paused"] else "taking jobs"
    _tell(answer, words, as_json=as_json)


def drain(
    within: Annotated[
        int, typer.Option(min=0, max=DRAIN_S_MAX, help="Cut jobs that run longer, in seconds.")
    ] = DRAIN_S_MAX,
    wait: Annotated[bool, typer.Option(help="Whether to wait until the node has ended.")] = True,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """End the node: take no more jobs, finish those that run, hand receipts in. A service manager
    does not start it again (`capanode service`)."""
    config = load_config(data_dir, config_file)
    answer = ask_node(config.status_socket, "drain", within_s=within)
    _tell(answer, f"finishing {_jobs(answer['running'])}", as_json=as_json)
    if wait:
        _wait_end(config)
        if not as_json:
            say("ended")


def measure(
    data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False
) -> None:
    """Measure all models again once the node has been idle, and the machine quiet, for a minute.
    What was measured before is offered until then."""
    answer = ask_node(load_config(data_dir, config_file).status_socket, "measure")
    _tell(answer, "measuring again as soon as this machine is quiet", as_json=as_json)


def _wait_end(config: NodeConfig) -> None:
    """At most as long as a drain may take; Ctrl-C stops waiting, not the drain."""
    while True:
        try:
            ask_status(config.status_socket)
        except NotRunningError:
            return
        time.sleep(_LOOK_EVERY_S)


def _tell(answer: dict[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        say(words)


def _jobs(count: int) -> str:
    return f"{count} job{'s' * (count != 1)}"
