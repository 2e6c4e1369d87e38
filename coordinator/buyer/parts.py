"""The signed request of each part of a purchase, with the payload that it pins."""

from dataclasses import dataclass

from coordinator.buyer.affinity import affinity_of
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.spec import JobSpec
from protocol.codec import encode
from protocol.envelope import Signed, seal
from protocol.errors import Code
from protocol.grants import Granted
from protocol.ids import Digest, JobId, PeerId
from protocol.keys import SigningKey
from protocol.late_payloads import PayloadBinding
from protocol.limits import PAYLOAD_BYTES_MAX
from protocol.messages import JobRequest
from protocol.payload import SaltedPayload


@dataclass(frozen=True, slots=True)
class RequestStamps:
    """What a part's request says beside the job itself: the purchase's id and salt, which all parts
    share, the part's number, and the digest of what was delivered before it."""

    job_id: JobId
    salt: bytes
    coordinator: PeerId
    now_ms: int
    part: int = 0
    delivered_digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class SignedPart:
    """What is leased and sent to nodes."""

    spec: JobSpec
    request: Signed[JobRequest]
    payload: SaltedPayload


@dataclass(frozen=True, slots=True)
class LeasedPart:
    """A part that has found a lease which was taken ahead of it, and binds its payload to that."""

    part: SignedPart
    granted: Granted
    binding: PayloadBinding


def sign_part(spec: JobSpec, key: SigningKey, stamps: RequestStamps) -> SignedPart:
    """Raises JobFailed (INPUT_TOO_LARGE) if the input does not fit in one payload."""
    payload = SaltedPayload(encode(spec.job_input), stamps.salt)
    if len(payload.data) > PAYLOAD_BYTES_MAX:
        raise JobFailed(
            f"the input has {len(payload.data)} bytes; up to {PAYLOAD_BYTES_MAX} can go",
            code=Code.INPUT_TOO_LARGE,
        )
    request = JobRequest(
        job_id=stamps.job_id,
        client=key.peer_id,
        coordinator=stamps.coordinator,
        model=spec.model,
        task=spec.task,
        payload_digest=payload.digest,
        payload_bytes=len(payload.data),
        units_max=spec.units_max,
        units_expected=spec.units_expected,
        objective=spec.objective,
        constraints=spec.constraints,
        issued_at_ms=stamps.now_ms,
        deadline_at_ms=stamps.now_ms + max(int(1000 * spec.deadline_s), 1),
        part=stamps.part,
        delivered_digest=stamps.delivered_digest,
        is_batch=spec.is_batch,
        affinity=affinity_of(spec.job_input, spec.session, key),
        counts_cached=True,
    )
    return SignedPart(spec, seal(key, request), payload)
