"""`coordinator quote|nodes|balance|whoami`: looking before buying.

These join the market as any client does, with a key of their own, and work against any coordinator.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.buyer import BuyerOptions, takes_buyer
from coordinator.cli.constraints import takes_constraints
from coordinator.cli.options import CommandError, Goal, Json, Model, check_model
from coordinator.cli.reasons import reason_words
from coordinator.cli.tasks import TASK_COMMANDS
from protocol.limits import TOKENS_MAX
from protocol.messages import Constraints, Objective, Task
from protocol.money import format_credits
from protocol.offers import NodeOffer
from protocol.pricing import ELEMENTS_PER_PRICE, Units
from protocol.programs.output import (
    credits_text,
    health_word,
    price_text,
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


@takes_buyer
def whoami(buyer: BuyerOptions, as_json: Json = False) -> None:
    """Print the peer id that you buy with; `accounts create --peer-id` gives it an account."""
    peer_id = buyer.key().peer_id
    if as_json:
        print_json({"peer_id": peer_id})
    else:
        typer.echo(peer_id)


@takes_buyer
def balance(buyer: BuyerOptions, as_json: Json = False) -> None:
    """What you have, and what running jobs hold of it."""
    import trio

    async def ask() -> None:
        async with buyer.open_market() as market:
            reply = await market.leaser.balance()
        if as_json:
            print_json({"available_nano": reply.available_nano, "held_nano": reply.held_nano})
        else:
            available, held = credits_text(reply.available_nano), credits_text(reply.held_nano)
            print_facts({"account": market.key.peer_id, "available": available, "held": held})

    trio.run(ask)


@takes_buyer
def nodes(
    buyer: BuyerOptions,
    model: Annotated[
        str, typer.Option(help="Only nodes with this model.", callback=check_model)
    ] = "",
    as_json: Json = False,
) -> None:
    """The nodes of the market, as the coordinator sees them now."""
    import trio

    async def ask() -> None:
        async with buyer.open_market() as market:
            found = await _list_nodes(market, model)
        if as_json:
            print_json([_plain_node(summary) for summary in found])
            return
        rows = [row for summary in found for row in _node_rows(summary)]
        print_table(NODE_HEADINGS, rows)

    trio.run(ask)


@takes_buyer
def models(buyer: BuyerOptions, as_json: Json = False) -> None:
    """What can be bought now: each model with its task, its context and its prices."""
    import trio

    from coordinator.edge.directory import list_models, read_summaries

    async def ask() -> None:
        async with buyer.open_market() as market:
            listed = list_models(read_summaries(await _list_nodes(market, "")))
        found = [info for name, info in sorted(listed.items()) if name == info.name]
        if as_json:
            print_json([asdict(info) | {"features": sorted(info.features)} for info in found])
            return
        print_table(
            ("model", "task", "nodes", "context", "from", "to"),
            [
                (
                    info.name,
                    TASK_COMMANDS[info.task].words,
                    info.nodes,
                    info.context_tokens or "-",
                    price_text(info.price_from, TASKS[info.task].units),
                    price_text(info.price_to, TASKS[info.task].units)
                    if info.price_to != info.price_from
                    else "",
                )
                for info in found
            ],
        )
        if not found:
            raise CommandError("no node of this market offers a model now")

    trio.run(ask)


@takes_constraints
@takes_buyer
def quote(
    model: Model,
    buyer: BuyerOptions,
    constraints: Constraints,
    tokens_in: Annotated[
        int, typer.Option(min=0, max=TOKENS_MAX, help="Expected input tokens.")
    ] = 200,
    tokens_out: Annotated[
        int, typer.Option(min=0, max=TOKENS_MAX, help="Expected output tokens.")
    ] = 200,
    objective: Goal = Objective.BALANCED,
    as_json: Json = False,
) -> None:
    """A dry run: which nodes would run such a job, at which cost, and why not the others."""
    import trio

    async def ask() -> None:
        async with buyer.open_market() as market:
            task = await market.task_of(model)
            units = _quote_units(task, tokens_in, tokens_out)
            reply = await market.leaser.quote(
                QuoteAsk(model, task, units, units, objective, constraints)
            )
        if as_json:
            print_json(_plain_quote(reply))
        else:
            _print_quote(reply, task, units, objective)
        if not reply.candidates:
            raise CommandError(f"no node that offers {model} now fits these constraints")

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
        offer.tier.value,
        rtt,
        f"{summary.running}+{summary.queued}",
        health_word(summary.health) if summary.attached else "away",
    )
    return [
        (*head, m.name, m.slots, price_text(m.price, TASKS[m.task].units)) for m in offer.models
    ]


def _plain_node(summary: NodeSummary) -> dict[str, object]:
    offer = _offer_of(summary)
    return {
        "node": summary.node,
        "region": offer.region,
        "isolation": offer.tier.value,
        "hardware": asdict(offer.hardware),
        "addresses": offer.addresses,
        "rtt_ms": summary.rtt_ms,
        "attached": summary.attached,
        "running": summary.running,
        "queued": summary.queued,
        "health": health_word(summary.health),
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


def _print_quote(reply: QuoteReply, task: Task, units: Units, objective: Objective) -> None:
    if reply.candidates:
        _print_candidates(reply, task)
    for rejection in reply.rejections:
        reasons = "; ".join(map(reason_words, rejection.reasons))
        typer.echo(f"not {short(rejection.node)}: {reasons}")
    counted = ", ".join(
        f"{count:,} {words}"
        for unit, words in _UNIT_WORDS.items()
        if (count := getattr(units, unit))
    )
    say(f"For {counted or 'a request'}; best first for {objective.value}. Nothing is held.")


_UNIT_WORDS = {
    "input_tokens": "tokens in",
    "output_tokens": "tokens out",
    "images": "image",
    "tensor_elements": "elements of tensors",
}


def _print_candidates(reply: QuoteReply, task: Task) -> None:
    print_table(
        (
            "node",
            "cost",
            "latency",
            "= rtt",
            "+ queue",
            "+ load",
            "+ prefill",
            "+ decode",
            "price",
            "why",
        ),
        [
            (
                short(candidate.node),
                format_credits(candidate.cost_nano),
                f"{candidate.latency_ms} ms",
                f"{candidate.rtt_ms:.1f}",
                candidate.queue_ms,
                candidate.load_ms,
                candidate.prefill_ms,
                candidate.decode_ms,
                price_text(candidate.price, TASKS[task].units),
                ", ".join(candidate.reasons),
            )
            for candidate in reply.candidates
        ],
    )
