"""Whether an offer meets a client's constraints: for the client, which takes no coordinator's word
for it, and for the coordinator's own last look before it leases."""

from protocol.ids import PeerId
from protocol.messages import Constraints, DataCollection, PriceCap
from protocol.offers import ModelOffer, NodeOffer
from protocol.pricing import PRICE_POSITIONS, PriceSheet


def broken_constraint(
    constraints: Constraints, offer: NodeOffer, model: ModelOffer, *, is_batch: bool = False
) -> str | None:
    """The name of a constraint that this model of this offer does not meet, or None.

    `max_latency_ms` is about an estimate and `max_cost_nano` about a job: an offer says neither.
    What is preferred breaks nothing.
    """
    if not _is_allowed(constraints, offer.node):
        return "only, ignore or order"
    if _is_dearer(model.asked_price(is_batch=is_batch), constraints.max_price):
        return "max_price"
    if constraints.quantizations and model.quantization not in constraints.quantizations:
        return "quantizations"
    if constraints.regions and offer.region not in constraints.regions:
        return "regions"
    if offer.tier.rank < constraints.isolation.rank:
        return "isolation"
    keeps_data = offer.data_collection is DataCollection.ALLOW
    if keeps_data and constraints.data_collection is DataCollection.DENY:
        return "data_collection"
    if not set(constraints.features) <= set(model.features):
        return "features"
    return None


def _is_allowed(constraints: Constraints, node: PeerId) -> bool:
    if node in constraints.ignore or (constraints.only and node not in constraints.only):
        return False
    is_bound = bool(constraints.order) and not constraints.allow_fallbacks
    return not is_bound or node in constraints.order


def _is_dearer(price: PriceSheet, cap: PriceCap) -> bool:
    for position in PRICE_POSITIONS:
        limit_nano = getattr(cap, position.cap_field)
        if limit_nano is not None and position.of(price) > limit_nano:
            return True
    return False
