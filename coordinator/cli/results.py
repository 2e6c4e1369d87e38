"""What a job was, and what it cost: as people and programs want to see it."""

from typing import TYPE_CHECKING, Any

from protocol.money import format_credits
from protocol.programs.output import say, short

if TYPE_CHECKING:
    from coordinator.buyer.attempt import AttemptTerms
    from coordinator.buyer.result import PurchaseResult


def outcome_plain(info: "AttemptTerms", outcome: "PurchaseResult") -> dict[str, Any]:
    return {
        "job_id": info.job_id,
        "node": info.node,
        "attempts": info.attempts,
        "model_digest": info.model_digest,
        "finish": outcome.finish.value,
        "input_tokens": outcome.units.input_tokens,
        "cached_tokens": outcome.units.cached_tokens,
        "output_tokens": outcome.units.output_tokens,
        "images": outcome.units.images,
        "tensor_elements": outcome.units.tensor_elements,
        "amount_nano": outcome.amount_nano,
        "counts_agree": outcome.agrees,
    }


def print_outcome(
    info: "AttemptTerms", outcome: "PurchaseResult", *, first_output_ms: float, total_ms: float
) -> None:
    """One line under the answer: where, how fast, how much."""
    units = outcome.units
    used = f"{units.images} image" if units.images else f"{units.input_tokens} tokens in"
    if units.cached_tokens:
        used += f" ({units.cached_tokens} cached)"
    if units.tensor_elements:
        used = f"{units.tensor_elements} elements"
    if units.output_tokens:
        used += f", {units.output_tokens} out"
    rate = ""
    if units.output_tokens > 1 and total_ms > first_output_ms:
        rate = f", {1_000 * (units.output_tokens - 1) / (total_ms - first_output_ms):.0f} tok/s"
    tries = f", attempt {info.attempts}" if info.attempts > 1 else ""
    say(
        f"[node {short(info.node)}{tries}; first output {first_output_ms:.0f} ms, total "
        f"{total_ms:.0f} ms{rate}; {used}; {format_credits(outcome.amount_nano)} credits; "
        f"job {info.job_id}]"
    )
