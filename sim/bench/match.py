"""How long one matching decision takes, among 1,000, 10,000 and 100,000 offers of one model.

Jobs differ in objective and constraints, nodes in price, speed, load, place and record. Beside it,
in the same run: the plainest loop that could find the cheapest node that is fast enough, and what
taking in one signed offer costs against the signature check alone.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from coordinator.market.matching import Job, match
from coordinator.market.offers import OfferBook
from coordinator.market.reputation import Reputation, Source
from coordinator.market.standing_rows import Ratios
from protocol.blame import blame_for
from protocol.envelope import Signed, seal
from protocol.errors import Code
from protocol.ids import Digest, PeerId, peer_id_from_public_key, sha256_digest
from protocol.keys import SigningKey, verify
from protocol.limits import OFFER_LIFETIME_MAX_MS
from protocol.messages import Constraints, IsolationTier, Objective, PriceCap, Task
from protocol.offers import Hardware, LoadReport, ModelLoad, ModelOffer, NodeOffer
from protocol.pricing import PriceSheet, Units, cost_nano

_SEED = 7
NOW_MS = 1_800_000_000_000
_MODEL = sha256_digest(b"bench model")
_REGIONS = ("eu-west", "eu-north", "us-east", "us-west", "asia", "africa")
_QUANTIZATIONS = ("bf16", "int8", "int4")
_JOBS = 256
_DECISIONS = {1_000: 5_000, 10_000: 1_500, 100_000: 150}
_OFFERS_TAKEN = 300
# What a lease asks for: the node to take, and one to make taking a newcomer safe.
_CANDIDATES = 2


def run() -> dict[str, float]:
    """Figures in microseconds; those without a suffix are among 1,000 offers. On a busy machine the
    99th percentile of wall time shows its scheduler, so processor time stands beside it."""
    figures: dict[str, float] = {}
    for nodes, decisions in _DECISIONS.items():
        rng = random.Random(_SEED)
        book, reputation = make_market(nodes, rng)
        jobs = list(draw_jobs(_JOBS, [entry.node for entry in book], rng))
        suffix = "" if nodes == 1_000 else f"_{nodes // 1_000}k"
        wall_us, cpu_us = _decide(book, reputation, jobs, decisions, rng)
        figures[f"p50_us{suffix}"] = statistics.median(wall_us)
        figures[f"p99_us{suffix}"] = _p99(wall_us)
        figures[f"cpu_p99_us{suffix}"] = _p99(cpu_us)
        if nodes == 1_000:
            figures["plain_loop_us"] = _plain_loop(book, jobs)
            figures["loop_ratio"] = figures["plain_loop_us"] / figures["p50_us"]
    return figures | _intake(random.Random(_SEED))


def _decide(
    book: OfferBook,
    reputation: Reputation,
    jobs: Sequence[Job],
    decisions: int,
    rng: random.Random,
) -> tuple[list[float], list[float]]:
    """Wall and processor time of each decision."""
    wall_us, cpu_us = [], []
    for number in range(decisions):
        job = jobs[number % len(jobs)]
        cpu_ns, wall_ns = time.thread_time_ns(), time.perf_counter_ns()
        match(job, book, reputation, now_ms=NOW_MS, rng=rng, limit=_CANDIDATES)
        wall_us.append((time.perf_counter_ns() - wall_ns) / 1_000)
        cpu_us.append((time.thread_time_ns() - cpu_ns) / 1_000)
    return wall_us, cpu_us


def _p99(times_us: Sequence[float]) -> float:
    return statistics.quantiles(times_us, n=100)[98]


def _timed_us(action: Callable[[], object]) -> float:
    started_ns = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - started_ns) / 1_000


def _plain_loop(book: OfferBook, jobs: Sequence[Job]) -> float:
    """Median time to look at every offer one by one, for cost and claimed speed only."""
    entries = list(book)

    def scan(units: Units) -> None:
        def score(model: ModelOffer) -> float:
            seconds = (
                units.input_tokens / model.prefill_tps + units.output_tokens / model.decode_tps
            )
            return cost_nano(model.price, units) * seconds

        min(entries, key=lambda entry: score(entry.offer.models[0]))

    return statistics.median(_timed_us(partial(scan, job.expected)) for job in jobs[:50])


def _intake(rng: random.Random) -> dict[str, float]:
    """Taking in one signed offer, and checking a signature alone."""
    book = OfferBook(Reputation(rng=rng))
    neighbour = SigningKey.generate(rng.randbytes)
    offers = []
    for _ in range(_OFFERS_TAKEN):
        key = SigningKey.generate(rng.randbytes)
        offers.append((key, seal(key, _offer(key.peer_id, rng))))
    verify_us = [
        _timed_us(partial(verify, key.peer_id, signed.raw, key.sign(signed.raw)))
        for key, signed in offers
    ]
    accept_us = [
        _timed_us(partial(book.accept, signed.raw, now_ms=NOW_MS, via=neighbour.peer_id))
        for _, signed in offers
    ]
    return {
        "accept_us": statistics.median(accept_us),
        "verify_us": statistics.median(verify_us),
    }


def make_market(nodes: int, rng: random.Random) -> tuple[OfferBook, Reputation]:
    """A book of `nodes` offers with loads, round trips and a history for half of them."""
    reputation = Reputation(rng=random.Random(_SEED))
    book = OfferBook(reputation)
    for _ in range(nodes):
        node = peer_id_from_public_key(rng.randbytes(32))
        offer = _offer(node, rng)
        digest = Digest(rng.randbytes(32).hex())
        book.insert(Signed(offer, node, digest, b""), now_ms=NOW_MS)
        slots = offer.models[0].slots
        load = ModelLoad(_MODEL, rng.randint(0, slots), rng.choice((0, 0, 0, 1)), available=True)
        book.apply_load(node, LoadReport(offer.incarnation_ms, False, (load,)))
        book.set_rtt(node, rng.lognormvariate(3.0, 0.8))
        _give_history(reputation, node, rng)
    return book, reputation


def _give_history(reputation: Reputation, node: PeerId, rng: random.Random) -> None:
    if rng.random() < 0.5:
        return
    for _ in range(rng.randint(1, 8)):
        if rng.random() < 0.93:
            ratios = Ratios(rng.lognormvariate(0.1, 0.4), rng.lognormvariate(0.1, 0.2))
            reputation.record_success(node, Source(node), now_ms=NOW_MS, ratios=ratios)
        else:
            code = rng.choice((Code.BUSY, Code.WORKER_CRASHED))
            reputation.record_code(node, code, blame_for(code), Source(node), now_ms=NOW_MS)


def _offer(node: PeerId, rng: random.Random) -> NodeOffer:
    decode_tps = rng.randint(20, 200)
    price = round(10**9 * rng.lognormvariate(-1.0, 0.6))
    return NodeOffer(
        node=node,
        incarnation_ms=NOW_MS - 60_000,
        sequence=1,
        issued_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + OFFER_LIFETIME_MAX_MS,
        addresses=(f"/ip4/10.{rng.randint(0, 255)}.{rng.randint(0, 255)}.9/tcp/4001",),
        region=rng.choice(_REGIONS),
        isolation=rng.choice((IsolationTier.BWRAP, IsolationTier.BWRAP, IsolationTier.LANDLOCK)),
        hardware=Hardware("cuda", "RTX 4090", 24 * 2**30, 1),
        models=(
            ModelOffer(
                name="bench",
                manifest_digest=_MODEL,
                task=Task.CAUSAL_LM,
                quantization=rng.choice(_QUANTIZATIONS),
                context_tokens=rng.choice((8_192, 32_768)),
                slots=rng.choice((1, 4, 8, 32)),
                queue_max=4,
                prefill_tps=decode_tps * 30,
                decode_tps=decode_tps,
                price=PriceSheet(price // 4, price),
            ),
        ),
        software="capanode/0.1.0",
    )


def draw_jobs(count: int, nodes: Sequence[PeerId], rng: random.Random) -> Iterator[Job]:
    """Half of the jobs state nothing but their objective, the others a constraint each."""
    for _ in range(count):
        choices = (
            Constraints(max_price=PriceCap(completion_nano_per_mtok=400_000_000)),
            Constraints(regions=tuple(rng.sample(_REGIONS, 2))),
            Constraints(isolation=IsolationTier.BWRAP, quantizations=("bf16",)),
            Constraints(max_latency_ms=rng.randint(50, 500)),
            Constraints(order=tuple(rng.sample(nodes, 3))),
            Constraints(only=tuple(rng.sample(nodes, 20))),
            Constraints(ignore=tuple(rng.sample(nodes, 5)), max_cost_nano=10**9),
        )
        expected = Units(rng.randint(10, 2_000), rng.randint(10, 500))
        yield Job(
            model=rng.choice((_MODEL, "bench")),
            task=Task.CAUSAL_LM,
            expected=expected,
            maximum=Units(expected.input_tokens, 1_024),
            objective=rng.choice(tuple(Objective)),
            constraints=rng.choice((Constraints(), rng.choice(choices))),
            deadline_at_ms=NOW_MS + 120_000,
            exclude=frozenset(rng.sample(nodes, rng.choice((0, 0, 0, 1)))),
        )
