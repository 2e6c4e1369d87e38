"""What a node says of its models fits into one offer."""

from capanode.served import within_signature_room
from protocol.ids import sha256_digest
from protocol.messages import Task
from protocol.offers import ModelOffer
from protocol.pricing import PriceSheet
from protocol.tensors import Datatype, ModelSignature, TensorMetadata


def offer(number: int, *, tensors: int) -> ModelOffer:
    listed = tuple(TensorMetadata(f"{n}" * 60, Datatype.FP32, (-1, 3)) for n in range(tensors))
    return ModelOffer(
        f"model-{number}",
        sha256_digest(bytes([number])),
        Task.TENSOR,
        "fp32",
        0,
        4,
        4,
        1_000,
        100,
        PriceSheet(),
        signature=ModelSignature(listed, listed) if tensors else None,
    )


def test_signatures_are_left_out_where_an_offer_has_no_room_for_them() -> None:
    offers = (offer(0, tensors=2), offer(1, tensors=9), offer(2, tensors=2), offer(3, tensors=0))
    kept = within_signature_room(offers)
    assert [one.signature is not None for one in kept] == [True, False, True, False]
    assert [one.name for one in kept] == [one.name for one in offers]
