"""What fits into an offer."""

from capanode.served import SIGNATURES_BYTES_MAX
from capanode.workers import MODELS_MAX
from protocol.codec import encode
from protocol.features import Feature
from protocol.ids import sha256_digest
from protocol.limits import ADDRESS_CHARS_MAX, NAME_CHARS_MAX, OFFER_ADDRESSES_MAX, OFFER_BYTES_MAX
from protocol.messages import IsolationTier, Task
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
