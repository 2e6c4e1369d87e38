"""A small market for tests: nodes with keys, their offers, a book and a reputation."""

import random
from dataclasses import replace
from functools import cache

from coordinator.market.breaker import REFUSED_TO_COOL
from coordinator.market.machines import Machines
from coordinator.market.matching import Job, Match, match
from coordinator.market.offers import OfferBook, OfferVerdict
from coordinator.market.reputation import Reputation, Source
from coordinator.market.seats import SEATS_MAX
from coordinator.market.standing_rows import NO_RATIOS, Ratios
from protocol.blame import blame_for
from protocol.envelope import Signed, seal
from protocol.errors import Code
from protocol.ids import Digest, PeerId, sha256_digest
from protocol.keys import SigningKey
from protocol.messages import DataCollection, IsolationTier, Objective, Task
from protocol.offers import Hardware, LoadReport, ModelLoad, ModelOffer, NodeOffer
from protocol.pricing import PriceSheet, Units

NOW_MS = 1_800_000_000_000
MODEL = sha256_digest(b"a model")
NAME = "smollm2"
CREDIT = 1_000_000_000


@cache
def key(number: int) -> SigningKey:
    return SigningKey.generate(random.Random(number).randbytes)


def node(number: int) -> PeerId:
    return key(number).peer_id


def model_offer(
    *,
    name: str = NAME,
    digest: Digest = MODEL,
    task: Task = Task.CAUSAL_LM,
    price_nano: int = CREDIT,
    prefill_tps: int = 1_000,
    decode_tps: int = 50,
    slots: int = 4,
    queue_max: int = 4,
    quantization: str = "bf16",
    context_tokens: int = 8_192,
) -> ModelOffer:
    """`price_nano` is per million tokens out; a token in costs a quarter of that."""
    return ModelOffer(
        name=name,
        manifest_digest=digest,
        task=task,
        quantization=quantization,
        context_tokens=context_tokens,
        slots=slots,
        queue_max=queue_max,
        prefill_tps=prefill_tps,
        decode_tps=decode_tps,
        price=PriceSheet(price_nano // 4, price_nano),
    )


def node_offer(
    number: int,
    *models: ModelOffer,
    incarnation_ms: int = NOW_MS - 60_000,
    sequence: int = 1,
    issued_at_ms: int = NOW_MS,
    lifetime_ms: int = 180_000,
    region: str = "eu",
    isolation: IsolationTier = IsolationTier.BWRAP,
    data_collection: DataCollection = DataCollection.DENY,
    address: str | None = None,
) -> NodeOffer:
    return NodeOffer(
        node=node(number),
        incarnation_ms=incarnation_ms,
        sequence=sequence,
        issued_at_ms=issued_at_ms,
        expires_at_ms=issued_at_ms + lifetime_ms,
        addresses=(address or f"/ip4/10.0.{number % 256}.1/tcp/4001",),
        region=region,
        isolation=isolation,
        hardware=Hardware("cpu", "test", 2**33, 1),
        models=models or (model_offer(),),
        software="test",
        data_collection=data_collection,
    )


def sealed(number: int, offer: NodeOffer) -> Signed[NodeOffer]:
    return seal(key(number), offer)


SOURCE = Source(key(0).peer_id)


def record(
    reputation: Reputation,
    node: PeerId,
    code: Code,
    *,
    now_ms: int,
    retry_after_ms: int | None = None,
    ratios: Ratios = NO_RATIOS,
    client: int | None = None,
) -> None:
    """A job that our own client saw end with this code; refusals go to three clients in turn."""
    if client is None:
        standing = reputation.standing(node, now_ms=now_ms)
        client = standing.refusals % REFUSED_TO_COOL if standing is not None else 0
    reputation.record_code(
        node,
        code,
        blame_for(code),
        Source(key(client).peer_id),
        now_ms=now_ms,
        retry_after_ms=retry_after_ms,
        ratios=ratios,
    )


class Market:
    """A book, a reputation and a clock that moves only by hand."""

    def __init__(self, *, seed: int = 1) -> None:
        self.now_ms = NOW_MS
        self.rng = random.Random(seed)
        # Seats to earn are tested in test_seats; here nodes have as many as they claim.
        self.reputation = Reputation(rng=random.Random(seed), seats_at_start=SEATS_MAX)
        self.book = OfferBook(self.reputation, machines=Machines(seats_at_start=SEATS_MAX))

    def insert(self, number: int, offer: NodeOffer) -> OfferVerdict:
        """List without the cost of a real signature; the digest still follows the content."""
        digest = sha256_digest(repr(offer).encode())
        return self.book.insert(Signed(offer, node(number), digest, b""), now_ms=self.now_ms)

    def add(self, number: int, *models: ModelOffer, rtt_ms: float | None = 10.0) -> PeerId:
        """A node that offers these models (one usual one if none), pinged."""
        offer = node_offer(number, *models, issued_at_ms=self.now_ms)
        self.insert(number, offer)
        if rtt_ms is not None:
            self.book.set_rtt(node(number), rtt_ms)
        return node(number)

    def refresh(self) -> None:
        """Every node renews its offer, as it would once a minute."""
        for entry in list(self.book):
            offer = replace(
                entry.offer,
                sequence=entry.offer.sequence + 1,
                issued_at_ms=self.now_ms,
                expires_at_ms=self.now_ms + 180_000,
            )
            digest = sha256_digest(repr(offer).encode())
            self.book.insert(Signed(offer, entry.node, digest, b""), now_ms=self.now_ms)

    def load(self, number: int, running: int, queued: int = 0, *, draining: bool = False) -> bool:
        entry = self.book.get(node(number))
        assert entry is not None
        loads = tuple(ModelLoad(digest, running, queued, True) for digest in entry.models)
        report = LoadReport(entry.offer.incarnation_ms, draining, loads)
        return self.book.apply_load(node(number), report)

    def match(self, job: Job, *, limit: int = 5, explain: bool = False) -> Match:
        return match(
            job,
            self.book,
            self.reputation,
            now_ms=self.now_ms,
            rng=self.rng,
            limit=limit,
            explain=explain,
        )

    def first(self, job: Job) -> PeerId:
        """The node that the job would go to."""
        return self.match(job).candidates[0].node


def a_job(**changes: object) -> Job:
    """500 tokens in and 100 out of the usual model, balanced, unless changed."""
    usual = Job(
        model=MODEL,
        task=Task.CAUSAL_LM,
        expected=Units(500, 100),
        maximum=Units(500, 200),
        objective=Objective.BALANCED,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]  # the dataclass checks the names
