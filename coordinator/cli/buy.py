"""`coordinator quote|submit|nodes|balance|whoami`: buying, and looking before buying.

These join the market as any client does, with a key of their own, and work against any coordinator.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import trio
import typer

from coordinator.cli.buy_options import (
    Ignore,
    MaxCost,
    MaxLatency,
    Only,
    Order,
    Region,
    build_constraints,
)
from coordinator.cli.market_session import MarketSession, buyer_key, open_market
from coordinator.cli.options import (
    At,
    CommandError,
    ConfigFile,
    DataDir,
    Json,
    KeyFile,
    load_config,
)
from coordinator.cli.output import (
    credits_text,
    print_facts,
    print_json,
    print_table,
    say,
    short,
)
from coordinator.cli.results import outcome_plain, print_outcome, print_result, result_of
from coordinator.client import JobSpec
from coordinator.units import units_of
from protocol.envelope import open_envelope
from protocol.limits import PAYLOAD_BYTES_MAX
from protocol.messages import Constraints, NodeOffer, Objective, Task
from protocol.money import format_credits
from protocol.payload import ChatMessage, EmbeddingInput, GenerationInput, ImageInput, JobInput
from protocol.pricing import PriceSheet, Units
from protocol.services import NodesAsk, NodeSummary, QuoteAsk, QuoteReply

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

Model = Annotated[str, typer.Argument(help="A model's name, or its manifest digest.")]
Goal = Annotated[Objective, typer.Option(help="What matters more.")]
MaxTokens = Annotated[int, typer.Option(min=1, max=1_000_000, help="The longest answer.")]


def whoami(data_dir: DataDir = None, config_file: ConfigFile = None, key: KeyFile = None) -> None:
    """Print the peer id that you buy with; `accounts create --peer-id` gives it an account."""
    typer.echo(buyer_key(load_config(data_dir, config_file), key).peer_id)


def balance(
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    key: KeyFile = None,
    coordinator: At = None,
    as_json: Json = False,
) -> None:
    """What you have, and what running jobs hold of it."""

    async def ask() -> None:
        config = load_config(data_dir, config_file)
        async with open_market(config, at=coordinator, key_path=key) as market:
            reply = await market.leaser.balance()
        if as_json:
            print_json({"available_nano": reply.available_nano, "held_nano": reply.held_nano})
        else:
            available, held = credits_text(reply.available_nano), credits_text(reply.held_nano)
            print_facts({"account": market.key.peer_id, "available": available, "held": held})

    trio.run(ask)


def nodes(
    model: Annotated[str, typer.Option(help="Only nodes with this model.")] = "",
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    key: KeyFile = None,
    coordinator: At = None,
    as_json: Json = False,
) -> None:
    """The nodes of the market, as the coordinator sees them now."""

    async def ask() -> None:
        config = load_config(data_dir, config_file)
        async with open_market(config, at=coordinator, key_path=key) as market:
            found = await _list_nodes(market, model)
        if as_json:
            print_json([_plain_node(summary) for summary in found])
            return
        rows = [row for summary in found for row in _node_rows(summary)]
        print_table(NODE_HEADINGS, rows)

    trio.run(ask)


def quote(
    model: Model,
    tokens_in: Annotated[int, typer.Option(min=0, help="Expected input tokens.")] = 200,
    tokens_out: Annotated[int, typer.Option(min=0, help="Expected output tokens.")] = 200,
    objective: Goal = Objective.BALANCED,
    max_cost: MaxCost = None,
    max_latency_ms: MaxLatency = None,
    only: Only = None,
    ignore: Ignore = None,
    region: Region = None,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    key: KeyFile = None,
    coordinator: At = None,
    as_json: Json = False,
) -> None:
    """A dry run: which nodes would run such a job, at which cost, and why not the others."""
    constraints = build_constraints(
        max_cost=max_cost, max_latency_ms=max_latency_ms, only=only, ignore=ignore, region=region
    )

    async def ask() -> None:
        config = load_config(data_dir, config_file)
        async with open_market(config, at=coordinator, key_path=key) as market:
            task = await _task_of(market, model)
            units = _quote_units(task, tokens_in, tokens_out)
            reply = await market.leaser.quote(
                QuoteAsk(model, task, units, units, objective, constraints)
            )
        if as_json:
            print_json(_plain_quote(reply))
        else:
            _print_quote(reply, objective)

    trio.run(ask)


def submit(
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="The text; or use --input.", show_default=False)
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="Read the input from a file (- for stdin): text or an image."),
    ] = None,
    max_tokens: MaxTokens = 256,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    top_k: Annotated[int, typer.Option(min=1, max=1_000, help="Labels of an image.")] = 5,
    raw: Annotated[
        bool, typer.Option(help="Continue the text; do not answer it as a chat.")
    ] = False,
    objective: Goal = Objective.BALANCED,
    max_cost: MaxCost = None,
    max_latency_ms: MaxLatency = None,
    only: Only = None,
    ignore: Ignore = None,
    order: Order = None,
    region: Region = None,
    deadline_s: Annotated[float, typer.Option(min=1.0, max=600.0)] = 120.0,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    key: KeyFile = None,
    coordinator: At = None,
    as_json: Json = False,
) -> None:
    """Run one job: a prompt, texts to embed (one a line), or an image to classify."""
    content = _read_input(prompt, input_file)
    constraints = build_constraints(
        max_cost=max_cost,
        max_latency_ms=max_latency_ms,
        only=only,
        ignore=ignore,
        order=order,
        region=region,
    )

    async def buy() -> None:
        config = load_config(data_dir, config_file)
        async with open_market(config, at=coordinator, key_path=key) as market:
            task = await _task_of(market, model)
            job_input = _job_input(
                task, content, max_tokens, temperature=temperature, seed=seed, top_k=top_k, raw=raw
            )
            spec = _spec(model, task, job_input, objective, constraints, deadline_s)
            await _run(market, spec, as_json)

    trio.run(buy)


async def _run(market: MarketSession, spec: JobSpec, as_json: bool) -> None:
    started_at = trio.current_time()
    chunks = []
    async with market.client.open_job(spec, market.key) as stream:
        first_output_ms = 1_000 * (trio.current_time() - started_at)
        async for chunk in stream:
            chunks.append(chunk)
            if not as_json and chunk.text:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    total_ms = 1_000 * (trio.current_time() - started_at)
    result = result_of(spec.task, chunks)
    info, outcome = stream.ended()
    if as_json:
        print_json(result | {"job": outcome_plain(info, outcome)})
        return
    if spec.task is Task.CAUSAL_LM:
        typer.echo()
    print_result(spec.task, result)
    print_outcome(info, outcome, first_output_ms=first_output_ms, total_ms=total_ms)


def _spec(
    model: str,
    task: Task,
    job_input: JobInput,
    objective: Objective,
    constraints: Constraints,
    deadline_s: float,
) -> JobSpec:
    units_max, units_expected = units_of(job_input)
    return JobSpec(
        model=model,
        task=task,
        job_input=job_input,
        units_max=units_max,
        units_expected=units_expected,
        objective=objective,
        constraints=constraints,
        deadline_s=deadline_s,
    )


def _read_input(prompt: str | None, file: Path | None) -> bytes:
    if (prompt is None) == (file is None):
        raise CommandError("give either a prompt or --input")
    if prompt is not None:
        return prompt.encode()
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else Path(str(file)).read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from None
    if not 0 < len(content) < PAYLOAD_BYTES_MAX:
        raise CommandError(f"the input has {len(content)} bytes; up to {PAYLOAD_BYTES_MAX} can go")
    return content


def _job_input(
    task: Task,
    content: bytes,
    max_tokens: int,
    *,
    temperature: float,
    seed: int | None,
    top_k: int,
    raw: bool,
) -> JobInput:
    """Raises CommandError if the content is no input for the task."""
    try:
        if task is Task.IMAGE_CLASSIFICATION:
            return ImageInput(content, top_k=top_k)
        text = content.decode()
        if task is Task.EMBEDDING:
            return EmbeddingInput(tuple(line for line in text.splitlines() if line.strip()))
        return GenerationInput(
            max_tokens=max_tokens,
            messages=() if raw else (ChatMessage("user", text),),
            prompt=text if raw else None,
            temperature=temperature,
            seed=seed,
        )
    except ValueError as error:
        raise CommandError(f"this is no input for {task.value}: {error}") from None


async def _list_nodes(market: MarketSession, model: str) -> list[NodeSummary]:
    found: list[NodeSummary] = []
    after = ""
    while True:
        page = await market.leaser.nodes(NodesAsk(model, after))
        found += page.nodes
        after = page.next_after
        if not after:
            return found


async def _task_of(market: MarketSession, model: str) -> Task:
    """What the model does, as its nodes say."""
    page = await market.leaser.nodes(NodesAsk(model))
    for summary in page.nodes:
        for offered in open_envelope(summary.offer, NodeOffer).message.models:
            if model in (offered.name, offered.manifest_digest):
                return offered.task
    raise CommandError(f"no node offers {model!r} now: `coordinator nodes` lists what is offered")


def _quote_units(task: Task, tokens_in: int, tokens_out: int) -> Units:
    if task is Task.IMAGE_CLASSIFICATION:
        return Units(images=1)
    return Units(tokens_in, tokens_out if task is Task.CAUSAL_LM else 0)


def _price_text(price: PriceSheet) -> str:
    positions = (
        ("in/M", price.input_nano_per_mtok),
        ("out/M", price.output_nano_per_mtok),
        ("image", price.image_nano),
        ("request", price.request_nano),
    )
    return ", ".join(f"{format_credits(nano)} {name}" for name, nano in positions if nano) or "free"


def _node_rows(summary: NodeSummary) -> list[tuple[object, ...]]:
    offer = open_envelope(summary.offer, NodeOffer, signer=summary.node).message
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
    offer = open_envelope(summary.offer, NodeOffer, signer=summary.node).message
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
        "candidates": [asdict(candidate) for candidate in reply.candidates],
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
