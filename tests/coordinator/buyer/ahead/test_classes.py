from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coordinator.buyer.ahead.classes import LeaseClass, class_of
from coordinator.buyer.spec import JobSpec
from protocol.features import Feature
from protocol.generation import GenerationInput
from protocol.limits import JOB_DURATION_MAX_MS, LEASE_OPEN_WITHIN_MS, PAYLOAD_BYTES_MAX, TOKENS_MAX
from protocol.messages import Constraints, Task
from protocol.pricing import Units
from tests.protocol.makers import CLIENT

SPEC = JobSpec(
    "tiny",
    Task.CAUSAL_LM,
    GenerationInput(max_tokens=8, prompt="x"),
    Units(input_tokens=300, output_tokens=100),
    Units(input_tokens=70, output_tokens=100),
)


def class_for(spec: JobSpec, payload_bytes: int = 100) -> LeaseClass:
    found = class_of(spec, CLIENT.peer_id, payload_bytes=payload_bytes)
    assert found is not None
    return found


@given(st.integers(0, TOKENS_MAX), st.integers(1, TOKENS_MAX), st.integers(1, PAYLOAD_BYTES_MAX))
def test_a_class_has_room_for_its_jobs_and_at_most_twice_as_much(
    input_tokens: int, output_tokens: int, payload_bytes: int
) -> None:
    units = Units(input_tokens=input_tokens, output_tokens=output_tokens)
    found = class_for(replace(SPEC, units_max=units, units_expected=units), payload_bytes)
    assert units.fits_in(found.units_max)
    assert found.units_max.input_tokens <= max(2 * input_tokens, 64)
    assert found.units_max.output_tokens <= max(2 * output_tokens, 16)
    assert found.units_expected.fits_in(found.units_max)
    assert payload_bytes <= found.payload_bytes <= max(2 * payload_bytes, 4_096)


def test_jobs_that_are_alike_share_a_class_and_others_do_not() -> None:
    alike = replace(SPEC, units_max=Units(input_tokens=500, output_tokens=128))
    assert class_for(alike) == class_for(SPEC)
    for other in (
        replace(SPEC, model="large"),
        replace(SPEC, units_max=Units(input_tokens=600, output_tokens=100)),
        replace(SPEC, constraints=Constraints(regions=("here",))),
        replace(SPEC, deadline_s=60.0),
    ):
        assert class_for(other) != class_for(SPEC)


def test_only_nodes_that_take_late_payloads_are_asked_for() -> None:
    constraints = class_for(replace(SPEC, constraints=Constraints(features=("tools",)))).constraints
    assert constraints.features == ("tools", Feature.LATE_PAYLOAD)


def test_a_lease_outlives_a_job_that_comes_at_its_end() -> None:
    assert class_for(SPEC).duration_ms >= 1_000 * SPEC.deadline_s + LEASE_OPEN_WITHIN_MS


def test_batches_hedged_jobs_and_the_longest_ones_find_no_lease() -> None:
    for spec in (
        replace(SPEC, is_batch=True),
        replace(SPEC, hedge=True),
        replace(SPEC, deadline_s=JOB_DURATION_MAX_MS / 1_000),
    ):
        assert class_of(spec, CLIENT.peer_id, payload_bytes=1) is None
