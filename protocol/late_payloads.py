"""Payloads that are named when a lease is opened, not when it was asked for.

A client that leases ahead of its jobs signs requests without a payload. The opening of such a lease
pins the payload and states what this one job may use, which is often less than was leased. The node
keeps the opening in its receipt, so that the chain of evidence names the payload all the same:
request → lease → opening → receipt → acceptance.
"""

from dataclasses import dataclass

from protocol.errors import Code, RemoteProtocolError
from protocol.fields import check
from protocol.ids import Digest, is_digest
from protocol.limits import AFFINITIES_MAX, AFFINITY_BYTES, PAYLOAD_BYTES_MAX
from protocol.messages import JobRequest, Lease
from protocol.pricing import Units


@dataclass(frozen=True, slots=True)
class PayloadBinding:
    """What a request would have said of its payload: digest, size, the most that may be billed, and
    how the input begins."""

    payload_digest: Digest
    payload_bytes: int
    units_max: Units
    affinity: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        check(is_digest(self.payload_digest), "the payload digest is not a sha256")
        check(0 < self.payload_bytes <= PAYLOAD_BYTES_MAX, "the payload's size is out of range")
        check(self.units_max != Units(), "the job may not use anything")
        check(len(self.affinity) <= AFFINITIES_MAX, "there are too many affinity keys")
        check(
            all(len(key) == AFFINITY_BYTES for key in self.affinity),
            f"an affinity key has {AFFINITY_BYTES} bytes",
        )


def payload_of(request: JobRequest, lease: Lease, late: PayloadBinding | None) -> PayloadBinding:
    """Which payload a job has and what it may use, by its request or by its opening (`late`).
    Raises RemoteProtocolError (MALFORMED) unless one of them says so, within what was leased."""
    if request.payload_digest is not None:
        _require(late is None, "the request pins its payload, the opening must not")
        return PayloadBinding(
            request.payload_digest, request.payload_bytes, lease.units_max, request.affinity
        )
    if late is None:
        raise RemoteProtocolError(
            "neither the request nor the opening names a payload", code=Code.MALFORMED
        )
    _require(late.payload_bytes <= request.payload_bytes, "the payload is larger than was leased")
    _require(late.units_max.fits_in(lease.units_max), "the opening allows more than was leased")
    return late


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RemoteProtocolError(message, code=Code.MALFORMED)
