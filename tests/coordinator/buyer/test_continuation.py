"""What the next part of an answer asks for."""

from dataclasses import replace

from coordinator.buyer.continuation import Delivered, FirstPart, next_part
from coordinator.buyer.spec import JobSpec
from protocol.generation import GenerationInput
from protocol.ids import Digest, sha256_digest
from protocol.messages import NO_CONSTRAINTS, Task
from protocol.payload import Chunk, derive_seed
from protocol.pricing import Units

FIRST = FirstPart(sha256_digest(b"request"), Digest("a" * 64), input_tokens=5, context_tokens=99)
INPUT = GenerationInput(max_tokens=8, prompt="hi", prefix_tokens=(1,), min_tokens=4, logprobs=2)
SPEC = JobSpec(
    model="tiny",
    task=Task.CAUSAL_LM,
    job_input=replace(INPUT, prompt_logprobs=0),
    units_max=Units(input_tokens=20, output_tokens=8),
    units_expected=Units(input_tokens=5, output_tokens=4),
    constraints=replace(NO_CONSTRAINTS, max_cost_nano=1_000),
)


def part_after(*tokens: int, spec: JobSpec = SPEC, spent_nano: int = 300) -> JobSpec:
    delivered = Delivered(bytes(16))
    delivered.add(Chunk(tokens, "text"))
    return next_part(spec, FIRST, delivered, spent_nano=spent_nano)


def test_it_is_the_same_input_after_what_was_delivered() -> None:
    part = part_after(7, 8, 9)
    seed = derive_seed(FIRST.request_digest)
    # What was scored once is not scored again; what looks back at the answer stays.
    assert part.job_input == replace(
        INPUT, max_tokens=5, prefix_tokens=(1, 7, 8, 9), seed=seed, prompt_logprobs=None
    )
    assert part.model == FIRST.model_digest


def test_a_seed_that_its_buyer_chose_stays() -> None:
    spec = replace(SPEC, job_input=replace(INPUT, seed=11))
    part_input = part_after(7, spec=spec).job_input
    assert isinstance(part_input, GenerationInput)
    assert part_input.seed == 11


def test_bounds_and_costs_are_what_the_earlier_parts_left() -> None:
    part = part_after(7, 8, 9)
    assert part.units_max == Units(input_tokens=23, output_tokens=5)
    assert part.units_expected == Units(input_tokens=8, output_tokens=1)
    assert part.constraints.max_cost_nano == 700
    assert part_after(7, spent_nano=2_000).constraints.max_cost_nano == 0
