"""What a node claimed of one job's speed, kept until the job ends, to compare it with the truth."""

from dataclasses import dataclass

from coordinator.market.standing_rows import Ratios

# Fewer tokens after the first one say more about how frames were bundled than about the node.
_TOKENS_MIN = 4
# Round trips jitter; a first output that seems to have come before its round trip took this long.
_FIRST_MIN_MS = 0.5


@dataclass(frozen=True, slots=True)
class Claim:
    """Uncorrected times of a lease's job: until the first output without the network, and then for
    each output token (0 if the task has none)."""

    first_ms: float
    step_ms: float

    def ratios(
        self,
        *,
        first_output_ms: float | None,
        total_ms: float,
        output_tokens: int,
        rtt_ms: float | None,
    ) -> Ratios:
        """Measured over claimed. `rtt_ms` is the measured round trip to the node; without one, the
        time to the first output says nothing about the node itself."""
        if first_output_ms is None:
            return Ratios()
        first = None
        if rtt_ms is not None:
            first = max(first_output_ms - rtt_ms, _FIRST_MIN_MS) / self.first_ms
        decode = None
        if output_tokens > _TOKENS_MIN and self.step_ms:
            per_token_ms = (total_ms - first_output_ms) / (output_tokens - 1)
            decode = per_token_ms / self.step_ms
        return Ratios(first, decode)
