"""The node's own offer: made from what it serves, signed, gossiped on change and now and then.

Gossip costs every node CPU, so a change waits a moment for others to join it, and without changes
an offer is only repeated before the old one would expire.
"""

import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from protocol.clock import Clock
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import RemoteProtocolError
from protocol.gossip_checks import GossipChecks
from protocol.ids import Digest, PeerId
from protocol.keys import SigningKey
from protocol.limits import (
    CLOCK_SKEW_MAX_MS,
    LEASE_OPEN_WITHIN_MS,
    OFFER_BYTES_MAX,
    OFFER_INTERVAL_MIN_MS,
    OFFER_LIFETIME_MAX_MS,
    OFFER_REFRESH_MS,
)
from protocol.messages import DataCollection, IsolationTier
from protocol.net.transport import Gossip, Transport
from protocol.offers import Hardware, ModelOffer, NodeOffer
from protocol.pricing import PriceSheet
from protocol.receipts import check_fresh
from protocol.services import offer_topic, shard_of

log = structlog.get_logger(__name__)

# Changes that come together (three workers ready after a start) make one offer.
DEBOUNCE_S = 0.25
# While another process signs with our key, each offers anew this often: coordinators see by the
# silence that one of them has ended.
TWIN_REFRESH_S = 20.0
# A twin that is not heard of for so long has ended, or its line has.
TWIN_SEEN_FOR_S = 45.0
# Told of a twin a moment ago, we do not outrank it: both would do so in turn.
TWIN_JUST_SEEN_S = 15.0
# Of ours, as many as offers may still be under way from.
INCARNATIONS_MAX = 16
# Spread refreshes, so that nodes that were started together do not gossip together.
REFRESH_JITTER = 0.1

# Offers whose leases may still arrive: twice what OFFER_INTERVAL_MIN_MS allows in a lifetime.
OFFERS_REMEMBERED_MAX = 256
# Other nodes' offers that we pass on and otherwise ignore.
GOSSIP_QUEUE_MAX = 256


@dataclass(frozen=True, slots=True)
class About:
    """What an offer says of the node as a whole. Only the hardware changes while it runs."""

    region: str
    isolation: IsolationTier
    hardware: Hardware
    software: str
    data_collection: DataCollection


class OwnOffers:
    """The offers that a lease may still rest on, with the prices that they promised."""

    def __init__(self) -> None:
        self._offers: OrderedDict[Digest, tuple[int, dict[Digest, ModelOffer]]] = OrderedDict()

    def remember(self, offer: Signed[NodeOffer]) -> None:
        models = {model.manifest_digest: model for model in offer.message.models}
        # A lease granted just before the offer expired may be opened a little later.
        until_ms = offer.message.expires_at_ms + LEASE_OPEN_WITHIN_MS + CLOCK_SKEW_MAX_MS
        self._offers[offer.digest] = (until_ms, models)
        while len(self._offers) > OFFERS_REMEMBERED_MAX:
            self._offers.popitem(last=False)

    def has_made(self, offer: Digest, *, now_ms: int) -> bool:
        """True if it was us, since we started, and not too long ago."""
        return now_ms < self._offers.get(offer, (0, {}))[0]

    def price_of(
        self, offer: Digest, model: Digest, *, now_ms: int, is_batch: bool = False
    ) -> PriceSheet | None:
        """What we asked for `model` in this offer; None if we did not, or too long ago."""
        offered = self.find(offer, model, now_ms=now_ms)
        return None if offered is None else offered.asked_price(is_batch=is_batch)

    def find(self, offer: Digest, model: Digest, *, now_ms: int) -> ModelOffer | None:
        """What we said of `model` in this offer; None if nothing, or too long ago."""
        until_ms, models = self._offers.get(offer, (0, {}))
        return models.get(model) if now_ms < until_ms else None


class Announcer:
    """Keeps one current offer and tells the network. `on_offer` gets every new one."""

    def __init__(
        self,
        transport: Transport,
        key: SigningKey,
        about: Callable[[], About],
        models: Callable[[], tuple[ModelOffer, ...]],
        *,
        clock: Clock,
        rng: random.Random,
        addresses: Callable[[], tuple[str, ...]],
    ) -> None:
        self.offers = OwnOffers()
        self.current: Signed[NodeOffer] | None = None
        # A restarted node outranks its former self; one with a twin that has ended, its twin.
        self.incarnation_ms = self._began_at_ms = clock.now_ms()
        self._incarnations = deque([self.incarnation_ms], maxlen=INCARNATIONS_MAX)
        self._twin_seen_at = -math.inf
        self._transport = transport
        self._key = key
        self._about = about
        self._models = models
        self._clock = clock
        self._rng = rng
        self._addresses = addresses
        self._sequence = 0
        self._checks = GossipChecks()
        self.topic = offer_topic(shard_of(key.peer_id))
        self._changed = trio.Event()
        self._new_offer = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Offer until cancelled; `started` with the first offer made. Also carries our share of
        others' gossip, by subscribing to our own shard."""
        channel = self._transport.subscribe(
            self.topic, self.is_worth_passing, queue_max=GOSSIP_QUEUE_MAX
        )
        async with channel, trio.open_nursery() as nursery:
            nursery.start_soon(self._drop, channel)
            await self._publish(self._make_offer())
            task_status.started()
            while True:
                await self._wait_reason()
                await self._publish(self._make_offer())

    def changed(self) -> None:
        """Something that the offer says may be different now."""
        self._changed.set()

    @property
    def twin_seen(self) -> bool:
        """Whether another process runs with our key, as far as was seen lately."""
        return trio.current_time() - self._twin_seen_at < TWIN_SEEN_FOR_S

    def note_twin(self) -> None:
        """A coordinator, or gossip, has shown another process with our key."""
        if not self.twin_seen:
            log.error("another_node_uses_our_key")
        self._twin_seen_at = trio.current_time()
        self._changed.set()

    def note_outranked(self) -> None:
        """A coordinator knows a later process with our key, which is gone: ours is the one that
        runs, and offers anew. Not if the other one was seen a moment ago."""
        if trio.current_time() - self._twin_seen_at >= TWIN_JUST_SEEN_S:
            self.incarnation_ms = max(self._clock.now_ms(), self.incarnation_ms + 1)
            self._incarnations.append(self.incarnation_ms)
            log.warning("offering_anew", why="a process with our key has ended that began later")
            self._changed.set()

    async def renew_if_changed(self) -> None:
        """Offer anew at once if there is something new to say."""
        if self._says_something_new():
            await self._publish(self._make_offer())

    async def wait_new_offer(self) -> None:
        """Until an offer is made after this call."""
        await self._new_offer.wait()

    async def publish_now(self) -> None:
        """Without waiting for more changes: the node is about to leave."""
        await self._publish(self._make_offer())

    async def _wait_reason(self) -> None:
        """Until something changed, or the offer needs a refresh."""
        spread = self._rng.uniform(1 - REFRESH_JITTER, 1 + REFRESH_JITTER)
        offered_at = trio.current_time()
        quiet_until = trio.current_time() + OFFER_INTERVAL_MIN_MS / 1000
        while True:
            refresh_s = TWIN_REFRESH_S if self.twin_seen else OFFER_REFRESH_MS / 1000
            with trio.move_on_at(offered_at + refresh_s * spread):
                await self._changed.wait()
                await trio.sleep(DEBOUNCE_S)
                await trio.sleep_until(quiet_until)
                self._changed = trio.Event()
                if self._says_something_new():
                    return
                continue
            return

    def _says_something_new(self) -> bool:
        assert self.current is not None
        offered = self.current.message
        says = (offered.models, offered.addresses, offered.incarnation_ms, offered.hardware)
        now = (self._models(), self._addresses(), self.incarnation_ms, self._about().hardware)
        return says != now

    def _make_offer(self) -> Signed[NodeOffer]:
        now_ms = self._clock.now_ms()
        self._sequence += 1
        about = self._about()
        offer = seal(
            self._key,
            NodeOffer(
                node=self._key.peer_id,
                incarnation_ms=self.incarnation_ms,
                sequence=self._sequence,
                issued_at_ms=now_ms,
                expires_at_ms=now_ms + OFFER_LIFETIME_MAX_MS,
                addresses=self._addresses(),
                region=about.region,
                isolation=about.isolation.in_offers,
                isolation_tier=_own_word(about.isolation),
                hardware=about.hardware,
                models=self._models(),
                software=about.software,
                data_collection=about.data_collection,
            ),
        )
        self.offers.remember(offer)
        self.current = offer
        self._new_offer.set()
        self._new_offer = trio.Event()
        return offer

    async def _publish(self, offer: Signed[NodeOffer]) -> None:
        await self._transport.publish(self.topic, offer.raw)
        log.info(
            "offer_published",
            sequence=offer.message.sequence,
            models=[model.name for model in offer.message.models],
            size=len(offer.raw),
        )

    def is_worth_passing(self, data: bytes, via: PeerId) -> bool:
        """True for a signed, current offer of this shard; coordinators judge what it says."""
        now_ms = self._clock.now_ms()
        if len(data) > OFFER_BYTES_MAX or not self._checks.take(data, via, now_ms=now_ms):
            return False
        try:
            signed = open_envelope(data, NodeOffer)
            offer = signed.message
            check_fresh(offer.issued_at_ms, offer.expires_at_ms, now_ms=now_ms, what="offer")
        except RemoteProtocolError:
            return False
        if signed.signer != offer.node or offer_topic(shard_of(offer.node)) != self.topic:
            return False
        if offer.node == self._key.peer_id:
            self._look_at_twin(offer)
        return True

    def _look_at_twin(self, offer: NodeOffer) -> None:
        """An offer with our key that was made after we started, but not by us: another machine runs
        a copy of the data directory. (An older one is our own, from before a restart.)"""
        is_ours = offer.incarnation_ms in self._incarnations
        if not is_ours and offer.issued_at_ms > self._began_at_ms:
            self.note_twin()

    async def _drop(self, channel: trio.MemoryReceiveChannel[Gossip]) -> None:
        async for _ in channel:
            pass


def _own_word(tier: IsolationTier) -> str | None:
    """Said only where the protocol's first version has no word for it."""
    return None if tier is tier.in_offers else tier.value
