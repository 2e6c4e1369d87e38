"""Options of everything that buys: which nodes, how dear, how slow."""

from typing import Annotated

import typer

from coordinator.cli.options import CommandError
from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId, parse_peer_id
from protocol.messages import Constraints
from protocol.money import parse_credits

MaxCost = Annotated[
    str | None, typer.Option("--max-cost", help="Credits that the job may cost at most.")
]
MaxLatency = Annotated[
    int | None, typer.Option("--max-latency-ms", min=1, help="Expected time to the first output.")
]
Only = Annotated[list[str] | None, typer.Option(help="Only this node (peer id); may be repeated.")]
Ignore = Annotated[list[str] | None, typer.Option(help="Not this node; may be repeated.")]
Order = Annotated[list[str] | None, typer.Option(help="Try this node first; may be repeated.")]
Region = Annotated[list[str] | None, typer.Option(help="Only in this region; may be repeated.")]


def build_constraints(
    *,
    max_cost: str | None = None,
    max_latency_ms: int | None = None,
    only: list[str] | None = None,
    ignore: list[str] | None = None,
    order: list[str] | None = None,
    region: list[str] | None = None,
) -> Constraints:
    """Raises CommandError for a value that is none."""
    try:
        return Constraints(
            max_cost_nano=parse_credits(max_cost) if max_cost is not None else None,
            max_latency_ms=max_latency_ms,
            only=_peers(only),
            ignore=_peers(ignore),
            order=_peers(order),
            regions=tuple(region or ()),
        )
    except (ValueError, RemoteProtocolError) as error:
        raise CommandError(str(error)) from None


def _peers(texts: list[str] | None) -> tuple[PeerId, ...]:
    return tuple(parse_peer_id(text) for text in texts or ())
