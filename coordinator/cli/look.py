"""`coordinator quote|nodes|balance|whoami`: looking before buying.

These join the market as any client does, with a key of their own, and work against any coordinator.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.constraints import takes_constraints
from coordinator.cli.options import (
    At,
    ConfigFile,
    DataDir,
    Goal,
    Json,
    KeyFile,
    Model,
    check_model,
    load_config,
)
from protocol.limits import TOKENS_MAX
from protocol.messages import Constraints, Objective, Task
from protocol.money import format_credits
from protocol.offers import NodeOffer
from protocol.pricing import ELEMENTS_PER_PRICE, PRICE_POSITIONS, PriceSheet, Units
from protocol.programs.output import (
    credits_text,
    print_facts,
    print_json,
    print_table,
    say,
    short,
)
from protocol.services import NodesAsk, NodeSummary, QuoteAsk, QuoteReply
from protocol.tasks import TASKS

if TYPE_CHECKING:
    from coordinator.cli.market_session import MarketSession

NODE_HEADINGS = (
    "node",
    "region",
    "isolation",
    "rtt",
    "busy",
    "health",
    "model",
    "slots",
    "price",
)


def whoami(
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Print the peer id that you buy with; `accounts create --peer-id` gives it an account."""
    from coordinator.cli.market_session import buyer_key

    peer_id = buyer_key(load_config(data_dir, config_file), key).peer_id
    if as_json:
        print_json({"peer_id": peer_id})
    else:
        typer.echo(peer_id)


def balance(
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    key: KeyFile = None,
    coordinator: At = None,
    as_json: Json = False,
) -> None:
    """What you have, and what running jobs hold of it."""
    import trio

    from coordinator.cli.market_session import open_command_market

    async def ask() -> None:
        config = load_config(data_dir, config_file)
        async with open_command_market(config, at=coordinator, key_path=key) as market:
            reply = await market.leaser.balance()
        if as_json:
            print_json({"available_nano": reply.available_nano, "held_nano": reply.held_nano})
        else:
            available, held = credits_text(reply.available_nano), credits_text(reply.held_nano)
            print_facts({"account": market.key.peer_id, "available": available, "held": held})

    trio.run(ask)


def nodes(
    model: Annotated[
        str, typer.Option(help="Only nodes with this model.", callback=check_model)
    ] = "",
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    key: KeyFile = None,
    coordinator: At = None,
    as_json: Json = False,
) -> None:
    """The nodes of the market, as the coordinator sees them now."""
    import trio

    from coordinator.cli.market_session import open_command_market

    async def ask() -> None:
        config = load_config(data_dir, config_file)
        async with open_command_market(config, at=coordinator, key_path=key) as market:
            found = await _list_nodes(market, model)
        if as_json:
            print_json([_plain_node(summary) for summary in found])
            return
        rows = [row for summary in found for row in _node_rows(summary)]
        print_table(NODE_HEADINGS, rows)

    trio.run(ask)


@takes_constraints
def quote(
    model: Model,
    constraints: Constraints,
    tokens_in: Annotated[
        int, typer.Option(min=0, max=TOKENS_MAX, help="Expected input tokens.")
    ] = 200,
    tokens_out: Annotated[
        int, typer.Option(min=0, max=TOKENS_MAX, help="Expected output tokens.")
    ] = 200,
    objective: Goal = Objective.BALANCED,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    key: KeyFile = None,
    coordinator: At = None,
    as_json: Json = False,
) -> None:
    """A dry run: which nodes would run such a job, at which cost, and why not the others."""
    import trio

    from coordinator.cli.market_session import open_command_market

    async def ask() -> None:
        config = load_config(data_dir, config_file)
        async with open_command_market(config, at=coordinator, key_path=key) as market:
            task = await market.task_of(model)
            units = _quote_units(task, tokens_in, tokens_out)
            reply = await market.leaser.quote(
                QuoteAsk(model, task, units, units, objective, constraints)
            )
        if as_json:
            print_json(_plain_quote(reply))
        else:
            _print_quote(reply, objective)

    trio.run(ask)


async def _list_nodes(market: "MarketSession", model: str) -> list[NodeSummary]:
    found: list[NodeSummary] = []
    after = ""
    while True:
        page = await market.leaser.nodes(NodesAsk(model, after))
        found += page.nodes
        after = page.next_after
        if not after:
            return found


def _quote_units(task: Task, tokens_in: int, tokens_out: int) -> Units:
    counts = Units(tokens_in, tokens_out, images=1, tensor_elements=ELEMENTS_PER_PRICE)
    return Units(**{unit: getattr(counts, unit) for unit in TASKS[task].units})


def _price_text(price: PriceSheet) -> str:
    asked = [
        f"{format_credits(nano)} {position.label}"
        for position in PRICE_POSITIONS
        if (nano := position.of(price))
    ]
    return ", ".join(asked) or "free"


def _offer_of(summary: NodeSummary) -> NodeOffer:
    """What the node itself has signed. Raises RemoteProtocolError."""
    from protocol.envelope import open_envelope

    return open_envelope(summary.offer, NodeOffer, signer=summary.node).message


def _node_rows(summary: NodeSummary) -> list[tuple[object, ...]]:
    offer = _offer_of(summary)
    rtt = "-" if summary.rtt_ms is None else f"{summary.rtt_ms:.1f} ms"
    head = (
        short(summary.node),
        offer.region or "-",
        offer.isolation.value,
        rtt,
        f"{summary.running}+{summary.queued}",
        summary.health if summary.attached else "away",
    )
    return [(*head, m.name, m.slots, _price_text(m.price)) for m in offer.models]


def _plain_node(summary: NodeSummary) -> dict[str, object]:
    offer = _offer_of(summary)
    return {
        "node": summary.node,
        "region": offer.region,
        "isolation": offer.isolation.value,
        "hardware": asdict(offer.hardware),
        "addresses": offer.addresses,
        "rtt_ms": summary.rtt_ms,
        "attached": summary.attached,
        "running": summary.running,
        "queued": summary.queued,
        "health": summary.health,
        "success_rate": summary.success_rate,
        "models": [asdict(model) for model in offer.models],
    }


def _plain_quote(reply: QuoteReply) -> dict[str, object]:
    return {
        "model": reply.model,
        "model_digest": reply.model_digest,
        "ceiling_nano": reply.ceiling_nano,
        "match_us": reply.match_us,
        "candidates": [
            asdict(candidate) | {"first_output_ms": candidate.first_output_ms}
            for candidate in reply.candidates
        ],
        "rejections": [asdict(rejection) for rejection in reply.rejections],
    }


def _print_quote(reply: QuoteReply, objective: Objective) -> None:
    print_table(
        ("node", "cost", "latency", "= rtt", "+ queue", "+ prefill", "+ decode", "price", "why"),
        [
            (
                short(candidate.node),
                format_credits(candidate.cost_nano),
                f"{candidate.latency_ms} ms",
                f"{candidate.rtt_ms:.1f}",
                candidate.queue_ms,
                candidate.prefill_ms,
                candidate.decode_ms,
                _price_text(candidate.price),
                ", ".join(candidate.reasons),
            )
            for candidate in reply.candidates
        ],
    )
    for rejection in reply.rejections:
        typer.echo(f"not {short(rejection.node)}: {', '.join(rejection.reasons)}")
    say(f"Best first for {objective.value}; decided in {reply.match_us} µs. Nothing is held.")
