"""`python -m sim demo`: a market on this machine, and one job of each kind bought in it.

Everything is real: processes, libp2p, sandboxes, models, signatures, books. What is shown is what
the programs and the API answer; the demo computes nothing itself but three cosines.
"""

import base64
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from operator import itemgetter
from pathlib import Path
from typing import Any

import httpx
import trio

from coordinator.cli.market_session import MarketSession, open_market
from coordinator.settings import CoordinatorConfig
from protocol.envelope import open_envelope
from protocol.messages import Objective, Task
from protocol.money import format_credits
from protocol.offers import NodeOffer
from protocol.pricing import Units, asked_prices
from protocol.services import NodesAsk, QuoteAsk
from sim.network import (
    NODE_READY_WITHIN_S,
    LocalNetwork,
    NetworkError,
    NodePlan,
    open_network,
    plan_nodes,
    run_command,
)

CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"
IMAGE_MODEL = "efficientnet-lite0"
QUESTION = "Why is the sky blue? Answer in two sentences."
SENTENCES = (
    "The cat sat on the mat.",
    "A kitten was resting on the rug.",
    "Interest rates rose by half a point.",
)
OPENING_CREDIT = "10"
POLL_EVERY_S = 0.25

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Where models are and the network's files go; `keep` leaves the network running."""

    model_store: Path
    folder: Path
    nodes: int = 3
    keep: bool = False


def demo_plans(count: int) -> list[NodePlan]:
    """Every node chats; embeddings and images are on two of three, to save start-up time."""
    extras = ((EMBEDDING_MODEL,), (IMAGE_MODEL,), (EMBEDDING_MODEL, IMAGE_MODEL))
    plans = plan_nodes(count, [CHAT_MODEL])
    return [
        NodePlan(
            name=plan.name,
            models=(*plan.models, *extras[number % len(extras)]),
            input_per_mtok=plan.input_per_mtok,
            output_per_mtok=plan.output_per_mtok,
            image=plan.image,
            latency=plan.latency,
        )
        for number, plan in enumerate(plans)
    ]


async def run_demo(options: DemoOptions, say: Say, write: Say) -> None:
    """Start the network, buy, show. `write` prints without a line end, for a streamed answer."""
    began_at = trio.current_time()

    def step(text: str) -> None:
        say(f"\n[{trio.current_time() - began_at:5.1f} s] {text}")

    async with open_network(options.folder, options.model_store) as network:
        step("starting the coordinator")
        await network.start_coordinator()
        say(f"  {network.endpoint.addresses[0]}")
        plans = demo_plans(options.nodes)
        step(f"starting {len(plans)} nodes; each proves its sandbox and loads its models in it")
        async with trio.open_nursery() as starting:
            for plan in plans:
                starting.start_soon(network.start_node, plan)
        key = await open_account(network)
        config = CoordinatorConfig.resolve(flags={"data_dir": network.coordinator_dir})
        async with open_market(config, at=None, key_path=None) as market:
            await _show_offers(market, len(plans), say)
            step("a quote: who would answer, and why not the others")
            await _show_quote(market, say)
        async with _http_client(network, key) as http:
            step(f"a chat, streamed through the OpenAI API: {QUESTION}")
            job_id = await _show_chat(http, say, write)
            step("embeddings of three sentences, and how similar they are")
            await _show_embeddings(http, say)
            step("classification of matplotlib's grace_hopper.jpg")
            await _show_image(http, say)
        step("the receipt of the chat, checked offline")
        await _show_receipt(network, job_id, say)
        step("balances, and an audit of the books")
        _show_books(network, say)
        step("the API")
        _show_api(network, key, say)
        if options.keep:
            say("\nThe market keeps running; Ctrl-C stops it.")
            await trio.sleep_forever()
        step("stopping")


async def wait_nodes(
    market: MarketSession, count: int, on_node: Callable[[NodeOffer, float | None], None]
) -> None:
    """Until that many nodes are attached with a measured distance. Raises NetworkError."""
    seen: set[str] = set()
    with trio.move_on_after(NODE_READY_WITHIN_S):
        while len(seen) < count:
            page = await market.leaser.nodes(NodesAsk())
            for summary in page.nodes:
                if summary.attached and summary.rtt_ms is not None and summary.node not in seen:
                    seen.add(summary.node)
                    on_node(open_envelope(summary.offer, NodeOffer).message, summary.rtt_ms)
            await trio.sleep(POLL_EVERY_S)
        return
    raise NetworkError(f"only {len(seen)} of {count} nodes joined within {NODE_READY_WITHIN_S} s")


async def open_account(network: LocalNetwork) -> str:
    """An account with money, an API key for it, and one for the command line's own key."""
    data_dir = f"--data-dir={network.coordinator_dir}"

    def create() -> str:
        existing = json.loads(run_command("coordinator", "accounts", "show", data_dir, "--json"))
        if not any(account["name"] == "demo" for account in existing):
            credit = f"--credit={OPENING_CREDIT}"
            run_command("coordinator", "accounts", "create", "demo", credit, data_dir)
        created = run_command("coordinator", "keys", "create", "demo", data_dir, "--json")
        key: str = json.loads(created)["key"]
        return key

    return await trio.to_thread.run_sync(create)


def _http_client(network: LocalNetwork, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=network.endpoint.http,
        headers={"Authorization": f"Bearer {key}"},
        timeout=120.0,
        trust_env=False,
    )


async def _show_offers(market: MarketSession, count: int, say: Say) -> None:
    def show(offer: NodeOffer, rtt_ms: float | None) -> None:
        say(
            f"  {offer.node[-8:]}  {offer.region:<9} rtt {rtt_ms or 0:6.1f} ms  "
            f"isolation {offer.tier.value}  {offer.hardware.name}"
        )
        for model in offer.models:
            asked = ", ".join(
                f"{format_credits(nano)} {position.label}"
                for position, nano in asked_prices(model.price)
            )
            say(
                f"      {model.name:<24} {model.slots} slots, {model.decode_tps}/s claimed, {asked}"
            )

    await wait_nodes(market, count, show)


async def _show_quote(market: MarketSession, say: Say) -> None:
    units = Units(input_tokens=50, output_tokens=100)
    for objective in (Objective.PRICE, Objective.LATENCY):
        reply = await market.leaser.quote(
            QuoteAsk(CHAT_MODEL, Task.CAUSAL_LM, units, units, objective)
        )
        say(f"  for {objective.value} (decided in {reply.match_us} µs):")
        for candidate in reply.candidates:
            say(
                f"    {candidate.node[-8:]}  {format_credits(candidate.cost_nano)} credits, "
                f"{candidate.latency_ms} ms = {candidate.rtt_ms:.1f} rtt + {candidate.queue_ms} "
                f"queue + {candidate.prefill_ms} prefill + {candidate.decode_ms} decode  "
                f"({', '.join(candidate.reasons)})"
            )
        for rejection in reply.rejections:
            say(f"    not {rejection.node[-8:]}: {', '.join(rejection.reasons)}")


async def _show_chat(http: httpx.AsyncClient, say: Say, write: Say) -> str:
    """Stream an answer; returns the job's id."""
    body = {
        "model": CHAT_MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 120,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    usage: dict[str, Any] = {}
    write("  ")
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        await _check(response)
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                write(choice["delta"].get("content") or "")
    headers = response.headers
    say(
        f"\n  [{usage.get('prompt_tokens')} tokens in, {usage.get('completion_tokens')} out; "
        f"node {headers['x-capacloud-node'][-8:]}; matched in {headers['x-capacloud-match-us']} µs]"
    )
    return headers["x-capacloud-job-id"]


async def _show_embeddings(http: httpx.AsyncClient, say: Say) -> None:
    body = {"model": EMBEDDING_MODEL, "input": list(SENTENCES), "encoding_format": "float"}
    reply = await _post(http, "/v1/embeddings", body)
    vectors = [entry["embedding"] for entry in reply["data"]]
    for number, sentence in enumerate(SENTENCES):
        say(f"  {number + 1}  {sentence}")
    for first, second in ((0, 1), (0, 2), (1, 2)):
        similarity = _cosine(vectors[first], vectors[second])
        say(f"  {first + 1} and {second + 1}: {similarity:+.3f}")


async def _show_image(http: httpx.AsyncClient, say: Say) -> None:
    image = files("matplotlib").joinpath("mpl-data/sample_data/grace_hopper.jpg").read_bytes()
    body = {"model": IMAGE_MODEL, "image": base64.b64encode(image).decode(), "top_k": 3}
    reply = await _post(http, "/v1/images/classifications", body)
    for entry in reply["data"]:
        say(f"  {entry['score']:6.1%}  {entry['label']}")


async def _show_receipt(network: LocalNetwork, job_id: str, say: Say) -> None:
    path = network.folder / "receipt.json"

    def verify() -> str:
        data_dir = f"--data-dir={network.coordinator_dir}"
        path.write_text(run_command("coordinator", "receipts", "export", job_id, data_dir))
        return run_command("coordinator", "receipts", "verify", str(path))

    _say_indented(await trio.to_thread.run_sync(verify), say)


def _show_books(network: LocalNetwork, say: Say) -> None:
    data_dir = f"--data-dir={network.coordinator_dir}"
    accounts = json.loads(run_command("coordinator", "accounts", "show", data_dir, "--json"))
    # By kind: who paid, who earned, who took the fee.
    for account in sorted(accounts, key=itemgetter("kind")):
        if account["id"] not in ("issuance", "escrow", "goodwill"):
            name = account["name"] or account["id"][-8:]
            say(f"  {account['kind']:<7} {name:<10} {format_credits(account['posted_nano']):>14}")
    _say_indented(run_command("coordinator", "ledger", "audit", data_dir), say)


def _show_api(network: LocalNetwork, key: str, say: Say) -> None:
    url = network.endpoint.http
    # Without a limit so small a model may go on for thousands of tokens.
    greeting = [{"role": "user", "content": "Hello!"}]
    body = json.dumps({"model": CHAT_MODEL, "messages": greeting, "max_tokens": 100})
    say(f"  {url}/v1")
    say(f"  curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\")
    say(f"    -H 'Content-Type: application/json' -d '{body}'")


async def _post(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await http.post(path, json=body)
    await _check(response)
    reply: dict[str, Any] = response.json()
    return reply


async def _check(response: httpx.Response) -> None:
    if response.is_error:
        await response.aread()
        raise NetworkError(f"the API answered {response.status_code}: {response.text}")


def _cosine(first: Sequence[float], second: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / (math.hypot(*first) * math.hypot(*second))


def _say_indented(text: str, say: Say) -> None:
    for line in text.rstrip().splitlines():
        say(f"  {line}")
