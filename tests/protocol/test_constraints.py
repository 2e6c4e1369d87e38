from dataclasses import replace

import pytest

from protocol.constraints import broken_constraint
from protocol.messages import Constraints, DataCollection, IsolationTier, PriceCap
from tests.coordinator.market_makers import key, model_offer, node_offer

NODE, OTHER = key(1).peer_id, key(2).peer_id
OFFER = node_offer(1, model_offer())
MODEL = OFFER.models[0]
PRICE = MODEL.price


@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(),
        Constraints(only=(OTHER, NODE), order=(OTHER,), ignore=(OTHER,)),
        Constraints(order=(OTHER, NODE), allow_fallbacks=False),
        Constraints(regions=("elsewhere", OFFER.region), quantizations=(MODEL.quantization,)),
        Constraints(isolation=OFFER.isolation, data_collection=OFFER.data_collection),
        Constraints(
            max_price=PriceCap(
                PRICE.input_nano_per_mtok,
                PRICE.output_nano_per_mtok,
                PRICE.image_nano,
                PRICE.request_nano,
            )
        ),
        Constraints(max_latency_ms=1, max_cost_nano=0),
    ],
)
def test_an_offer_that_meets_them_breaks_none(constraints: Constraints) -> None:
    assert broken_constraint(constraints, OFFER, MODEL) is None


@pytest.mark.parametrize(
    ("constraints", "broken"),
    [
        (Constraints(only=(OTHER,)), "only, ignore or order"),
        (Constraints(only=(NODE,), ignore=(NODE,)), "only, ignore or order"),
        (Constraints(order=(OTHER,), allow_fallbacks=False), "only, ignore or order"),
        (Constraints(regions=("elsewhere",)), "regions"),
        (Constraints(quantizations=("another",)), "quantizations"),
    ],
)
def test_what_does_not_meet_them_is_named(constraints: Constraints, broken: str) -> None:
    assert broken_constraint(constraints, OFFER, MODEL) == broken


@pytest.mark.parametrize("position", range(4))
def test_each_position_of_a_price_has_its_cap(position: int) -> None:
    dear = replace(
        MODEL,
        price=replace(
            PRICE,
            input_nano_per_mtok=10,
            output_nano_per_mtok=10,
            image_nano=10,
            request_nano=10,
        ),
    )
    caps: list[int | None] = [None] * 4
    for limit_nano, broken in ((10, None), (9, "max_price")):
        caps[position] = limit_nano
        constraints = Constraints(max_price=PriceCap(*caps))
        assert broken_constraint(constraints, OFFER, dear) == broken


def test_prompts_go_only_where_they_may() -> None:
    weak = replace(OFFER, isolation=IsolationTier.LANDLOCK)
    assert broken_constraint(Constraints(isolation=IsolationTier.BWRAP), weak, MODEL) == "isolation"
    with_gpu = replace(weak, isolation_tier="bwrap_gpu")
    assert broken_constraint(Constraints(isolation=IsolationTier.BWRAP), with_gpu, MODEL)
    wanted = Constraints(isolation=IsolationTier.BWRAP_GPU)
    assert broken_constraint(wanted, with_gpu, MODEL) is None
    assert broken_constraint(wanted, weak, MODEL) == "isolation"
    keeps = replace(OFFER, data_collection=DataCollection.ALLOW)
    private = Constraints(data_collection=DataCollection.DENY)
    assert broken_constraint(private, keeps, MODEL) == "data_collection"
    assert broken_constraint(Constraints(), keeps, MODEL) is None
