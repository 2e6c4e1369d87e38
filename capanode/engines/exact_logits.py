"""The logits of single tokens in float32.

A product in bfloat16 rounds its result: at a logit of 16 to the next eighth, which decides one draw
in a hundred. For the few tokens that are about to win a draw the product is computed again.
"""

from collections.abc import Sequence

from torch import Tensor


def bend(scores: Tensor, softcap: float) -> Tensor:
    """Keep scores between -softcap and softcap (Gemma 2)."""
    return (scores / softcap).tanh_() * softcap


class ExactLogits:
    """What rounding took from the `rounded` logits [n, vocab] of `states` [n, hidden]."""

    def __init__(
        self, rounded: Tensor, states: Tensor, head: Tensor, *, softcap: float | None = None
    ) -> None:
        """With `softcap` the logits were bent (see `bend`) after the product."""
        self._rounded, self._states, self._head = rounded, states, head
        self._softcap = softcap

    def take(self, rows: Sequence[int]) -> "ExactLogits":
        return ExactLogits(
            self._rounded[rows], self._states[rows], self._head, softcap=self._softcap
        )

    def corrections(self, ids: Tensor) -> Tensor:
        """Float32, one for each of `ids` [n, k]."""
        exact = (self._head[ids].float() * self._states[:, None].float()).sum(-1)
        if self._softcap is not None:
            exact = bend(exact, self._softcap)
        return exact - self._rounded.gather(1, ids).float()
