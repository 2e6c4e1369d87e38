"""What a coordinator grants, and the client's own check of it."""

from dataclasses import dataclass

from protocol.constraints import broken_constraint
from protocol.countersigning import Delivery
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId, is_digest
from protocol.limits import FIRST_OUTPUT_WITHIN_MS, GAP_WITHIN_MS
from protocol.messages import JobRequest, Lease, Receipt
from protocol.offers import NodeOffer


@dataclass(frozen=True, slots=True)
class Granted:
    """A verified lease, with the offer that it rests on, and how long a node of that speed may be
    silent before its first output and between outputs. A client that waits longer waits in vain."""

    lease: Signed[Lease]
    offer: Signed[NodeOffer]
    match_us: int
    first_output_within_ms: int = FIRST_OUTPUT_WITHIN_MS
    gap_within_ms: int = GAP_WITHIN_MS
    # When a first output is later than 19 of 20 of this node's; 0 if that is not known.
    hedge_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class EarlierAttempts:
    """What is left of a purchase's earlier attempts: nodes not to lease again; their receipts,
    which free holds; and what the client signed where there was none, which bounds them."""

    nodes: tuple[PeerId, ...] = ()
    receipts: tuple[Signed[Receipt], ...] = ()
    deliveries: tuple[Signed[Delivery], ...] = ()


NO_ATTEMPTS = EarlierAttempts()


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What an API key may spend and has spent; None is no limit. Does not travel: keys are
    between a user and a gateway."""

    id: str
    label: str
    created_at_ms: int
    budget_nano: int | None
    spent_nano: int
    held_nano: int
    requests_per_minute: int | None


@dataclass(frozen=True, slots=True)
class Payer:
    """An API key whose budget pays; the budget is checked where the money is held."""

    api_key_id: str


def check_terms(granted: Granted, request: Signed[JobRequest]) -> None:
    """The client's own check that it was leased what it asked for, at the price that is offered,
    from a node that its constraints allow: they say who sees a prompt.

    Raises RemoteProtocolError (WRONG_SIGNER, DIGEST_MISMATCH, PRICE_MISMATCH).
    """
    lease, offer = granted.lease.message, granted.offer
    if offer.signer != lease.node or offer.digest != lease.offer_digest:
        raise RemoteProtocolError(
            "the lease does not rest on the offer that came with it", code=Code.DIGEST_MISMATCH
        )
    if lease.request_digest != request.digest or granted.lease.signer != lease.coordinator:
        raise RemoteProtocolError("the lease is for another request", code=Code.DIGEST_MISMATCH)
    if not lease.units_max.fits_in(request.message.units_max):
        raise RemoteProtocolError(
            "the lease allows more units than the request", code=Code.PRICE_MISMATCH
        )
    leased = [m for m in offer.message.models if m.manifest_digest == lease.model_digest]
    asked = request.message.model
    if asked not in [m.manifest_digest if is_digest(asked) else m.name for m in leased]:
        raise RemoteProtocolError(
            "the lease is for another model than the request", code=Code.DIGEST_MISMATCH
        )
    is_batch = request.message.is_batch
    asked_prices = [m.asked_price(is_batch=is_batch) for m in leased]
    # A coordinator that does not know of cached tokens leases without their price.
    if lease.price not in (*asked_prices, *(price.without_cached for price in asked_prices)):
        raise RemoteProtocolError(
            "the lease's price is not the one that the node offers", code=Code.PRICE_MISMATCH
        )
    constraints = request.message.constraints
    broken = broken_constraint(constraints, offer.message, leased[0], is_batch=is_batch)
    if broken is not None:
        raise RemoteProtocolError(
            f"the leased node does not meet the request's {broken}", code=Code.DIGEST_MISMATCH
        )
    cost_max_nano = constraints.max_cost_nano
    if cost_max_nano is not None and lease.ceiling_nano > cost_max_nano:
        raise RemoteProtocolError(
            f"the lease may cost {lease.ceiling_nano} nano-credits, the request allows "
            f"{cost_max_nano}",
            code=Code.PRICE_MISMATCH,
        )
