"""Which jobs a lease that was taken ahead may serve: pure decisions about sizes and routing.

Sizes are powers of two, so that a lease holds at most about twice what its job may cost.
"""

from dataclasses import dataclass, replace

from coordinator.buyer.spec import JobSpec
from protocol.features import Feature
from protocol.grants import Payer
from protocol.ids import PeerId
from protocol.limits import (
    JOB_DURATION_MAX_MS,
    KIB,
    LEASE_OPEN_WITHIN_MS,
    PAYLOAD_BYTES_MAX,
    TENSOR_ELEMENTS_MAX,
    TOKENS_MAX,
)
from protocol.messages import Constraints, Objective, Task
from protocol.pricing import Units

# Smaller jobs differ by less than a hold is worth telling apart.
_PAYLOAD_BYTES_MIN = 4 * KIB
_INPUT_TOKENS_MIN = 64
_OUTPUT_TOKENS_MIN = 16


@dataclass(frozen=True, slots=True)
class LeaseClass:
    """What a lease must be for to serve a job. Its units are those of the largest such job."""

    client: PeerId
    payer: Payer | None
    model: str
    task: Task
    objective: Objective
    constraints: Constraints
    payload_bytes: int
    units_max: Units
    units_expected: Units
    duration_ms: int


def class_of(spec: JobSpec, client: PeerId, *, payload_bytes: int) -> LeaseClass | None:
    """None if no lease may be taken ahead for such a job: a batch yields to others, and a hedged
    job is leased twice."""
    if spec.is_batch or spec.hedge:
        return None
    duration_ms = round(1_000 * spec.deadline_s) + LEASE_OPEN_WITHIN_MS
    if duration_ms > JOB_DURATION_MAX_MS:
        return None
    features = tuple(dict.fromkeys((*spec.constraints.features, Feature.LATE_PAYLOAD)))
    units_max = _rounded(spec.units_max)
    return LeaseClass(
        client=client,
        payer=spec.payer,
        model=spec.model,
        task=spec.task,
        objective=spec.objective,
        # What a job may cost is compared with the lease when the job is there.
        constraints=replace(spec.constraints, features=features, max_cost_nano=None),
        payload_bytes=min(_power(payload_bytes, _PAYLOAD_BYTES_MIN), PAYLOAD_BYTES_MAX),
        units_max=units_max,
        units_expected=_within(_rounded(spec.units_expected), units_max),
        # Jobs may take a whole second more or less, and a lease serves them until it lapses.
        duration_ms=-(-duration_ms // 1_000) * 1_000,
    )


def _rounded(units: Units) -> Units:
    return Units(
        input_tokens=_size(units.input_tokens, _INPUT_TOKENS_MIN, TOKENS_MAX),
        output_tokens=_size(units.output_tokens, _OUTPUT_TOKENS_MIN, TOKENS_MAX),
        images=units.images,
        tensor_elements=_size(units.tensor_elements, 1, TENSOR_ELEMENTS_MAX),
    )


def _within(units: Units, most: Units) -> Units:
    return Units(
        input_tokens=min(units.input_tokens, most.input_tokens),
        output_tokens=min(units.output_tokens, most.output_tokens),
        images=min(units.images, most.images),
        tensor_elements=min(units.tensor_elements, most.tensor_elements),
    )


def _size(count: int, least: int, most: int) -> int:
    """What is not used at all stays 0."""
    return min(_power(count, least), most) if count else 0


def _power(count: int, least: int) -> int:
    """The next power of two."""
    return max(1 << (count - 1).bit_length(), least)
