"""What a gateway beside its users knows of a model: all that one node's offer says of it."""

from dataclasses import fields

from coordinator.edge.directory import ListedNode, list_models
from protocol.features import Feature
from protocol.ids import sha256_digest
from protocol.keys import SigningKey
from protocol.messages import IsolationTier, Task
from protocol.offers import Hardware, ModelOffer, NodeOffer
from protocol.pricing import PriceSheet
from protocol.tensors import Datatype, ModelSignature, TensorMetadata

ROWS = (TensorMetadata("x", Datatype.FP32, (-1, 2)),)
OFFERED = ModelOffer(
    "pump",
    sha256_digest(b"pump"),
    Task.TENSOR,
    "fp32",
    1,
    4,
    4,
    0,
    0,
    PriceSheet(tensor_nano_per_kelement=5),
    features=(Feature.STREAM_WINDOWS,),
    chat_format="hermes",
    signature=ModelSignature(ROWS, ROWS, window_rows=16),
    dimensions=3,
)


def test_a_listed_model_is_what_its_offer_says() -> None:
    offer = NodeOffer(
        node=SigningKey(bytes(32)).peer_id,
        incarnation_ms=1_000,
        sequence=0,
        issued_at_ms=1_000,
        expires_at_ms=2_000,
        addresses=(),
        region="here",
        isolation=IsolationTier.BWRAP,
        hardware=Hardware("cpu", "test", 2**30, 1),
        models=(OFFERED,),
        software="test",
    )
    info = list_models([ListedNode(offer, is_attached=True, rtt_ms=None)])["pump"]
    shared = {field.name for field in fields(info)} & {field.name for field in fields(OFFERED)}
    assert {"signature", "dimensions", "features"} <= shared
    for name in shared - {"features"}:
        assert getattr(info, name) == getattr(OFFERED, name), name
    assert info.features == {Feature.STREAM_WINDOWS}
