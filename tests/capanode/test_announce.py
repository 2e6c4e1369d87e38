"""The offers that we remember; announcing itself is tested whole in test_node."""

from dataclasses import replace
from random import Random

import trio
from trio.testing import MockClock

from capanode.announce import OFFERS_REMEMBERED_MAX, About, Announcer, OwnOffers
from protocol.envelope import seal
from protocol.gossip_checks import CHECKS
from protocol.limits import KIB, OFFER_BYTES_MAX
from protocol.messages import DataCollection, IsolationTier
from protocol.net.clock import VirtualClock
from protocol.net.memory import MemoryNetwork
from protocol.net.transport import Transport
from protocol.services import offer_topic, shard_of
from tests.capanode.fakes import HARDWARE, FakeWorker, make_manifest, make_model, make_offer
from tests.protocol.makers import NODE, NOW_MS, PRICE, STRANGER

MODEL = make_model(make_manifest(), FakeWorker())
OFFER = seal(NODE, make_offer(MODEL, NOW_MS))
NEIGHBOUR = STRANGER.peer_id


def test_a_price_is_ours_only_from_the_offer_that_named_it() -> None:
    offers = OwnOffers()
    offers.remember(OFFER)
    assert offers.price_of(OFFER.digest, MODEL.digest, now_ms=NOW_MS) == PRICE
    assert offers.price_of(OFFER.digest, OFFER.digest, now_ms=NOW_MS) is None
    assert offers.price_of(MODEL.digest, MODEL.digest, now_ms=NOW_MS) is None


def test_an_offer_is_honoured_a_little_longer_than_it_is_valid_and_no_more() -> None:
    offers = OwnOffers()
    offers.remember(OFFER)
    expires_ms = OFFER.message.expires_at_ms
    assert offers.price_of(OFFER.digest, MODEL.digest, now_ms=expires_ms + 50_000) == PRICE
    assert offers.price_of(OFFER.digest, MODEL.digest, now_ms=expires_ms + 70_000) is None


def test_only_so_many_offers_are_remembered() -> None:
    offers = OwnOffers()
    offers.remember(OFFER)
    for sequence in range(2, OFFERS_REMEMBERED_MAX + 2):
        offers.remember(seal(NODE, replace(OFFER.message, sequence=sequence)))
    assert offers.price_of(OFFER.digest, MODEL.digest, now_ms=NOW_MS) is None


def make_announcer(
    clock: VirtualClock,
    tier: IsolationTier = IsolationTier.BWRAP,
    transport: Transport | None = None,
) -> Announcer:
    about = About("eu", tier, HARDWARE, "test", DataCollection.DENY)
    return Announcer(
        transport or MemoryNetwork(Random(1)).transport(NODE),
        NODE,
        lambda: about,
        lambda: (MODEL.offer(),),
        clock=clock,
        rng=Random(2),
        addresses=lambda: (),
    )


async def test_only_current_signed_offers_of_our_shard_are_passed_on(
    autojump_clock: MockClock,
) -> None:
    clock = VirtualClock(epoch_ms=NOW_MS)
    announcer = make_announcer(clock)
    assert announcer.is_worth_passing(OFFER.raw, NEIGHBOUR)
    forged = seal(STRANGER, OFFER.message).raw
    expired = seal(NODE, replace(OFFER.message, issued_at_ms=0, expires_at_ms=1)).raw
    for bad in (b"", b"garbage", forged, expired, bytes(OFFER_BYTES_MAX + 1)):
        assert not announcer.is_worth_passing(bad, NEIGHBOUR)
    theirs = seal(STRANGER, replace(OFFER.message, node=STRANGER.peer_id)).raw
    same_shard = offer_topic(shard_of(STRANGER.peer_id)) == announcer.topic
    assert announcer.is_worth_passing(theirs, NEIGHBOUR) == same_shard


async def test_a_neighbour_has_a_budget_of_what_is_checked(autojump_clock: MockClock) -> None:
    announcer = make_announcer(VirtualClock(epoch_ms=NOW_MS))
    for _ in range(1 + CHECKS.burst // (OFFER_BYTES_MAX // KIB)):
        announcer.is_worth_passing(bytes(OFFER_BYTES_MAX), NEIGHBOUR)
    for _ in range(OFFER_BYTES_MAX // KIB):
        announcer.is_worth_passing(b"junk", NEIGHBOUR)
    assert not announcer.is_worth_passing(OFFER.raw, NEIGHBOUR)
    assert announcer.is_worth_passing(OFFER.raw, NODE.peer_id)
    await trio.sleep(1)
    assert announcer.is_worth_passing(OFFER.raw, NEIGHBOUR)


async def test_our_own_offer_from_before_a_restart_is_no_twin(autojump_clock: MockClock) -> None:
    announcer = make_announcer(VirtualClock(epoch_ms=NOW_MS))
    former = replace(OFFER.message, incarnation_ms=NOW_MS - 60_000, issued_at_ms=NOW_MS - 1_000)
    assert announcer.is_worth_passing(seal(NODE, former).raw, NEIGHBOUR)
    assert not announcer.twin_seen
    copied = replace(former, issued_at_ms=NOW_MS + 500)
    assert announcer.is_worth_passing(seal(NODE, copied).raw, NEIGHBOUR)
    assert announcer.twin_seen


async def test_a_node_with_a_gpu_says_its_tier_in_words_old_and_new(
    autojump_clock: MockClock,
) -> None:
    transport = MemoryNetwork(Random(1)).transport(NODE)
    clock = VirtualClock(epoch_ms=NOW_MS)
    announcer = make_announcer(clock, IsolationTier.BWRAP_GPU, transport)
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        await announcer.publish_now()
        nursery.cancel_scope.cancel()
    assert announcer.current is not None
    offer = announcer.current.message
    assert (offer.isolation, offer.tier) == (IsolationTier.LANDLOCK, IsolationTier.BWRAP_GPU)
