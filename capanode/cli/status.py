"""`capanode status`: how the node that runs here is doing."""

from collections.abc import Mapping
from typing import Any

import typer

from capanode.cli.options import ConfigFile, DataDir, Json, load_config
from capanode.status_socket import ask_status
from protocol.money import format_credits
from protocol.pricing import PriceSheet
from protocol.programs.output import price_text, print_facts, print_json, print_table, time_text

FAILURES_SHOWN = 5


def status(data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False) -> None:
    """Models, load, coordinators, earnings and the last failures of the running node."""
    plain = ask_status(load_config(data_dir, config_file).status_socket)
    if as_json:
        print_json(plain)
        return
    _print_node(plain)
    _print_models(plain["models"])
    _print_coordinators(plain["coordinators"])
    _print_earnings(plain["earnings"])
    _print_failures(plain["failures"])
    for warning in plain["warnings"]:
        typer.echo(f"! {warning}")


def _print_node(plain: Mapping[str, Any]) -> None:
    hardware = plain["hardware"]
    print_facts(
        {
            "node": plain["peer_id"],
            "software": plain["software"],
            "since": f"{time_text(plain['started_at_ms'])} UTC",
            "addresses": ", ".join(plain["addresses"]),
            "region": plain["region"] or "-",
            "hardware": f"{hardware['count']} x {hardware['name']}",
            "isolation": plain["isolation"],
            "state": "draining" if plain["draining"] else "serving",
            "uploading": plain["uploading"],
        }
    )


def _print_models(models: list[Mapping[str, Any]]) -> None:
    print_table(
        ("model", "state", "running", "queued", "tokens/s", "jobs", "price in credits"),
        [
            (
                model["name"],
                model["state"],
                f"{model['running']}/{model['slots']}",
                model["queued"],
                f"{model['tokens_per_s']:.0f}",
                model["jobs_done"],
                price_text(PriceSheet(**model["price"])),
            )
            for model in models
        ],
    )


def _print_coordinators(coordinators: list[Mapping[str, Any]]) -> None:
    if coordinators:
        print_table(
            ("coordinator", "state", "receipts", "error"),
            [
                (c["peer_id"], c["state"], c["receipts_handed_in"], c["error"] or "-")
                for c in coordinators
            ],
        )


def _print_earnings(earnings: list[Mapping[str, Any]]) -> None:
    """`settled` is paid, `pending` waits for the client's word, `waiting` for the coordinator."""
    if earnings:
        print_table(
            ("earnings at", "state", "jobs", "credits"),
            [
                (e["coordinator"], e["state"], e["jobs"], format_credits(e["amount_nano"]))
                for e in earnings
            ],
        )


def _print_failures(failures: list[Mapping[str, Any]]) -> None:
    if failures:
        print_table(
            ("last failures", "job", "code", "message"),
            [
                (f"{time_text(f['at_ms'])} UTC", f["job_id"] or "-", f["code"], f["message"])
                for f in failures[-FAILURES_SHOWN:]
            ],
        )
