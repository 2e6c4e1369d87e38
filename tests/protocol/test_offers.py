"""What fits into an offer, and what one version makes of another's."""

import msgpack
import pytest

from capanode.served import SIGNATURES_BYTES_MAX
from capanode.workers import MODELS_MAX
from protocol.codec import decode, encode
from protocol.features import Feature
from protocol.ids import sha256_digest
from protocol.limits import ADDRESS_CHARS_MAX, NAME_CHARS_MAX, OFFER_ADDRESSES_MAX, OFFER_BYTES_MAX
from protocol.messages import NO_CONSTRAINTS, IsolationTier, Task
from protocol.money import NANO_PER_CREDIT
from protocol.offers import SLOTS_MAX, TOKENS_PER_S_MAX, Hardware, ModelOffer, NodeOffer
from protocol.pricing import PriceSheet
from tests.protocol.makers import NODE

# An envelope's kind, key and signature.
ENVELOPE_BYTES = 256


def largest_model(number: int) -> ModelOffer:
    return ModelOffer(
        name=f"{number:0{NAME_CHARS_MAX}}",
        manifest_digest=sha256_digest(bytes([number])),
        task=Task.IMAGE_CLASSIFICATION,
        quantization="w8a8-int8-group-128-asymmetric",
        context_tokens=1_048_576,
        slots=SLOTS_MAX,
        queue_max=SLOTS_MAX,
        prefill_tps=TOKENS_PER_S_MAX,
        decode_tps=TOKENS_PER_S_MAX,
        price=PriceSheet(*[NANO_PER_CREDIT] * 5),
        features=tuple(Feature),
        chat_format="llama3_json",
        dimensions=65_536,
    )


def test_all_models_that_a_node_may_serve_fit_into_its_offer() -> None:
    offer = NodeOffer(
        node=NODE.peer_id,
        incarnation_ms=1_800_000_000_000,
        sequence=2**40,
        issued_at_ms=1_800_000_000_000,
        expires_at_ms=1_800_000_000_000,
        addresses=("a" * ADDRESS_CHARS_MAX,) * OFFER_ADDRESSES_MAX,
        region="r" * NAME_CHARS_MAX,
        isolation=IsolationTier.LANDLOCK,
        hardware=Hardware("cuda", "h" * NAME_CHARS_MAX, 2**49, 1_024),
        models=tuple(map(largest_model, range(MODELS_MAX))),
        software="s" * NAME_CHARS_MAX,
    )
    assert len(encode(offer)) + SIGNATURES_BYTES_MAX + ENVELOPE_BYTES <= OFFER_BYTES_MAX


def gpu_offer(tier: str | None) -> NodeOffer:
    return NodeOffer(
        node=NODE.peer_id,
        incarnation_ms=1,
        sequence=1,
        issued_at_ms=1,
        expires_at_ms=2,
        addresses=(),
        region="",
        isolation=IsolationTier.LANDLOCK,
        hardware=Hardware("cuda", "RTX 3090", 2**34, 1),
        models=(),
        software="",
        isolation_tier=tier,
    )


@pytest.mark.parametrize(
    ("word", "tier"),
    [
        (None, IsolationTier.LANDLOCK),
        ("bwrap_gpu", IsolationTier.BWRAP_GPU),
        ("landlock_gpu", IsolationTier.LANDLOCK_GPU),
        ("", IsolationTier.LANDLOCK),
        # Of a later version than this one.
        ("microvm", IsolationTier.LANDLOCK),
    ],
)
def test_a_tier_that_a_peer_does_not_know_is_harmless(
    word: str | None, tier: IsolationTier
) -> None:
    assert decode(NodeOffer, encode(gpu_offer(word))).tier is tier


def test_an_earlier_version_reads_the_offer_of_a_node_with_a_gpu() -> None:
    """It knows three tiers and no `isolation_tier`."""
    said = msgpack.unpackb(encode(gpu_offer("bwrap_gpu")))
    assert said["isolation"] in ("none", "landlock", "bwrap")
    del said["isolation_tier"]
    earlier = decode(NodeOffer, msgpack.packb(said))
    assert earlier.tier.rank < IsolationTier.BWRAP.rank
    assert "isolation_tier" not in msgpack.unpackb(encode(gpu_offer(None)))


def test_with_a_gpu_a_sandbox_is_weaker_and_meets_what_every_job_demands() -> None:
    for tier in (IsolationTier.LANDLOCK, IsolationTier.BWRAP):
        assert tier.with_gpu.rank <= tier.rank
        assert tier.with_gpu.rank >= NO_CONSTRAINTS.isolation.rank
        assert tier.with_gpu.in_offers.rank <= tier.with_gpu.rank
    assert IsolationTier.BWRAP.with_gpu.rank < IsolationTier.BWRAP.rank
    assert IsolationTier.BWRAP.with_gpu.rank > IsolationTier.LANDLOCK.rank
    assert IsolationTier.NONE.with_gpu is IsolationTier.NONE
    ranks = [tier.rank for tier in IsolationTier]
    assert ranks == sorted(ranks)
