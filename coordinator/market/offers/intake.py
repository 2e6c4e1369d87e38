"""What a raw offer must pass before its content is looked at.

A signature check costs about a tenth of a millisecond, which is what a flood is after. So sizes,
repetitions and budgets come first, and every check is charged to a peer that can be held to it:
the neighbour who sent the bytes, and, once verified, the key that signed them. A claimed signer is
never charged for bytes that it did not sign, or a forger could silence any peer.
"""

import hashlib
from collections import OrderedDict

import msgpack

from protocol.envelope import Signed, open_envelope
from protocol.errors import Code, RemoteProtocolError
from protocol.gossip_checks import GossipChecks
from protocol.ids import PeerId, public_key_from_peer_id
from protocol.limits import OFFER_BYTES_MAX, OFFER_INTERVAL_MIN_MS, OFFER_LIFETIME_MAX_MS
from protocol.offers import NodeOffer
from protocol.receipts import check_fresh
from protocol.services import offer_topic, shard_of
from protocol.token_buckets import Rate, TokenBuckets

# As often as an honest node changes its offer; the burst is for those that the network held up.
OFFERS = Rate(per_s=1_000 / OFFER_INTERVAL_MIN_MS, burst=6)
# A neighbour's validator rejects what ours would, so an honest one hands on next to no junk.
JUNK = Rate(per_s=1.0, burst=50)
# Twice what arrives in a minute in the largest market that we plan for.
_SEEN_MAX = 200_000
_KEYS_MAX = 200_000
_NEIGHBOURS_MAX = 4_096


class Intake:
    """Turns bytes from a neighbour into a verified, fresh and plausible offer, or refuses them."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, PeerId] = OrderedDict()
        self._offers = TokenBuckets(keys_max=_KEYS_MAX)
        self._junk = TokenBuckets(keys_max=_NEIGHBOURS_MAX)
        self._checks = GossipChecks()

    def open(
        self,
        raw: bytes,
        *,
        now_ms: int,
        via: PeerId,
        topic: str | None = None,
        signer: PeerId | None = None,
    ) -> Signed[NodeOffer]:
        """`signer` is who has to have signed it, if that is known before.

        Raises RemoteProtocolError: REPLAYED for bytes already taken, RATE_LIMITED,
        FRAME_TOO_LARGE, WRONG_TOPIC, WRONG_SIGNER, EXPIRED, NOT_YET_VALID, OFFER_IMPLAUSIBLE, or
        what `open_envelope` raises.
        """
        self._check_neighbour(raw, now_ms, via)
        claimed_key = _claimed_key(raw)
        if signer and claimed_key and claimed_key != public_key_from_peer_id(signer):
            raise RemoteProtocolError(
                f"the offer is not signed by {signer}", code=Code.WRONG_SIGNER
            )
        fingerprint = _fingerprint(raw)
        if fingerprint in self._seen:
            raise RemoteProtocolError("this offer has been taken already", code=Code.REPLAYED)
        if not self._offers.has_any(claimed_key, OFFERS, now_s=now_ms / 1_000):
            raise RemoteProtocolError(
                "this node changes its offer too often", code=Code.RATE_LIMITED
            )
        if not self._checks.take(raw, via, now_ms=now_ms):
            raise RemoteProtocolError(f"{via} hands on too many offers", code=Code.RATE_LIMITED)
        signed = self._verified(raw, now_ms, via, topic)
        self._offers.take(claimed_key, OFFERS, now_s=now_ms / 1_000)
        self._seen[fingerprint] = signed.signer
        if len(self._seen) > _SEEN_MAX:
            self._seen.popitem(last=False)
        return signed

    def signer_of(self, raw: bytes) -> PeerId:
        """Who signed an offer that was refused as REPLAYED."""
        return self._seen[_fingerprint(raw)]

    def forget(self, raw: bytes) -> None:
        """Take this offer again if it comes again: its place in the book was lost."""
        self._seen.pop(_fingerprint(raw), None)

    def _check_neighbour(self, raw: bytes, now_ms: int, via: PeerId) -> None:
        if not self._junk.has_any(via, JUNK, now_s=now_ms / 1_000):
            raise RemoteProtocolError(
                f"{via} has handed on too many bad offers", code=Code.RATE_LIMITED
            )
        if len(raw) > OFFER_BYTES_MAX:
            self._junk.take(via, JUNK, now_s=now_ms / 1_000)
            raise RemoteProtocolError(
                f"an offer of {len(raw)} bytes is over the limit of {OFFER_BYTES_MAX}",
                code=Code.FRAME_TOO_LARGE,
            )

    def _verified(
        self, raw: bytes, now_ms: int, via: PeerId, topic: str | None
    ) -> Signed[NodeOffer]:
        try:
            signed = open_envelope(raw, NodeOffer)
            check_plausible(signed, now_ms=now_ms)
            check_topic(signed.message, topic)
        except RemoteProtocolError:
            self._junk.take(via, JUNK, now_s=now_ms / 1_000)
            raise
        return signed


def check_plausible(signed: Signed[NodeOffer], *, now_ms: int) -> None:
    """Raises WRONG_SIGNER, OFFER_IMPLAUSIBLE, EXPIRED or NOT_YET_VALID."""
    offer = signed.message
    if offer.node != signed.signer:
        raise RemoteProtocolError(
            f"the offer of {offer.node} is signed by {signed.signer}", code=Code.WRONG_SIGNER
        )
    lifetime_ms = offer.expires_at_ms - offer.issued_at_ms
    if not 0 < lifetime_ms <= OFFER_LIFETIME_MAX_MS:
        raise RemoteProtocolError(
            f"an offer lives at most {OFFER_LIFETIME_MAX_MS} ms, not {lifetime_ms}",
            code=Code.OFFER_IMPLAUSIBLE,
        )
    if offer.incarnation_ms > offer.issued_at_ms:
        raise RemoteProtocolError(
            "the offer was issued before its node started", code=Code.OFFER_IMPLAUSIBLE
        )
    check_fresh(offer.issued_at_ms, offer.expires_at_ms, now_ms=now_ms, what="offer")


def check_topic(offer: NodeOffer, topic: str | None) -> None:
    """Raises WRONG_TOPIC if gossip brought the offer on another topic than its node's own."""
    own = offer_topic(shard_of(offer.node))
    if topic not in (None, own):
        raise RemoteProtocolError(f"offers of {offer.node} belong on {own}", code=Code.WRONG_TOPIC)


def _fingerprint(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()


def _claimed_key(raw: bytes) -> bytes:
    """The public key that the envelope names, unverified; empty if it is no envelope at all."""
    try:
        parts = msgpack.unpackb(raw, raw=False, max_array_len=5, max_map_len=0, max_ext_len=0)
    except (msgpack.UnpackException, ValueError, RecursionError):
        return b""
    match parts:
        case [_, _, bytes(public_key), _, _]:
            return public_key
    return b""
