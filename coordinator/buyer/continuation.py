"""How an answer goes on at another node after a cut: pure decisions, without I/O.

A node that is given the tokens of an answer goes on exactly after them: its decoder holds back what
the first one held back, and sampling draws by position. So the tokens are all that has to be kept.
"""

from array import array
from dataclasses import dataclass, replace

from coordinator.buyer.spec import Continuation, JobSpec
from protocol.generation import GenerationInput
from protocol.ids import Digest
from protocol.limits import TOKENS_MAX
from protocol.payload import Chunk, OutputDigest, derive_seed
from protocol.pricing import Units


def is_resumable(spec: JobSpec) -> bool:
    """Whether another node can go on where one has failed: a text, if its buyer lets it."""
    return is_text(spec) and spec.continuation is Continuation.CONTINUE


def is_whole(spec: JobSpec) -> bool:
    """Whether no part of the answer is passed on before all of it is there, so that another node
    may begin anew: an answer in one piece, or a text that is shown whole and may be restarted."""
    if not is_text(spec):
        return True
    return spec.is_shown_whole and spec.continuation is Continuation.RESTART


class Delivered:
    """The output that a purchase has got over all its parts."""

    def __init__(self, salt: bytes) -> None:
        self.token_ids = array("I")
        self._digest = OutputDigest(salt)

    def __len__(self) -> int:
        return len(self.token_ids)

    def add(self, chunk: Chunk) -> None:
        self.token_ids.extend(chunk.token_ids)
        self._digest.add(chunk)

    @property
    def digest(self) -> Digest:
        return self._digest.hexdigest()


@dataclass(frozen=True, slots=True)
class FirstPart:
    """What all later parts keep of the first: the request that seeds the sampling, the model that
    the tokens belong to, how its node counted the prompt, and how long the model's context is (0 if
    that is not known)."""

    request_digest: Digest
    model_digest: Digest
    input_tokens: int
    context_tokens: int


def is_at_length(spec: JobSpec, first: FirstPart, delivered: int) -> bool:
    """Whether an answer that was cut after so many tokens was over all the same."""
    assert isinstance(spec.job_input, GenerationInput)
    is_full = 0 < first.context_tokens <= first.input_tokens + delivered
    return is_full or delivered >= min(spec.job_input.max_tokens, spec.units_max.output_tokens)


def next_part(spec: JobSpec, first: FirstPart, delivered: Delivered, *, spent_nano: int) -> JobSpec:
    """What is left to buy of `spec`, the purchase as it began. What it may cost is what the earlier
    parts have left of it."""
    job_input, count = spec.job_input, len(delivered)
    assert isinstance(job_input, GenerationInput)
    cost_max_nano = spec.constraints.max_cost_nano
    if cost_max_nano is not None:
        cost_max_nano = max(cost_max_nano - spent_nano, 0)
    most, expected = spec.units_max, spec.units_expected
    return replace(
        spec,
        model=first.model_digest,
        job_input=replace(
            job_input,
            max_tokens=job_input.max_tokens - count,
            prefix_tokens=(*job_input.prefix_tokens, *delivered.token_ids),
            # Its request has another digest, from which its node would draw otherwise.
            seed=derive_seed(first.request_digest) if job_input.seed is None else job_input.seed,
            prompt_logprobs=None,
        ),
        units_max=_after(most, count),
        units_expected=_after(expected, count),
        constraints=replace(spec.constraints, max_cost_nano=cost_max_nano),
    )


def is_text(spec: JobSpec) -> bool:
    """Whether the answer is a text, which is of use as far as it goes."""
    return isinstance(spec.job_input, GenerationInput) and not spec.job_input.tokenizes_only


def _after(units: Units, count: int) -> Units:
    """Bounds of a part that has so many output tokens as its input."""
    return Units(
        input_tokens=min(units.input_tokens + count, TOKENS_MAX),
        output_tokens=max(units.output_tokens - count, 1),
    )
