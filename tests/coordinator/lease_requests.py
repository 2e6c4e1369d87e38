"""Requests for leases, as clients of a small market sign them."""

import itertools

from protocol.envelope import Signed, seal
from protocol.ids import JobId, new_ulid, sha256_digest
from protocol.keys import SigningKey
from protocol.messages import Constraints, JobRequest, Objective, Task
from protocol.pricing import Units
from tests.coordinator.small_market import MODEL, SmallMarket

_NUMBERS = itertools.count(1)


def signed_request(
    market: SmallMarket,
    key: SigningKey,
    *,
    job_id: JobId | None = None,
    output_tokens: int = 8,
    deadline_ms: int = 30_000,
    part: int = 0,
) -> Signed[JobRequest]:
    """A new job each time, unless `job_id` says which."""
    now_ms = market.clock.now_ms()
    units = Units(input_tokens=16, output_tokens=output_tokens)
    return seal(
        key,
        JobRequest(
            job_id=job_id or JobId(new_ulid(now_ms, next(_NUMBERS).to_bytes(10))),
            client=key.peer_id,
            coordinator=market.coordinator.key.peer_id,
            model=MODEL,
            task=Task.CAUSAL_LM,
            payload_digest=sha256_digest(b"payload"),
            payload_bytes=7,
            units_max=units,
            units_expected=units,
            objective=Objective.BALANCED,
            constraints=Constraints(),
            issued_at_ms=now_ms,
            deadline_at_ms=now_ms + deadline_ms,
            part=part,
        ),
    )
