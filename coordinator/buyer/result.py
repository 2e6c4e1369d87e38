"""How an attempt ended, and how a purchase did: one value over all the attempts that it took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from protocol.endings import Finish
from protocol.envelope import Signed
from protocol.errors import Code
from protocol.ids import PeerId
from protocol.messages import Acceptance, Receipt
from protocol.pricing import UNIT_NAMES, Units


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """How an attempt ended, with the node's signed receipt as the evidence. Where counts differ,
    `units` and `amount_nano` are what we counted, which is the most that we are charged."""

    finish: Finish
    units: Units
    amount_nano: int
    receipt: Signed[Receipt]
    acceptance: Signed[Acceptance]


@dataclass(frozen=True, slots=True)
class PurchasePart:
    """What one node delivered, by our own count, and the most that we are charged for it.

    `tokens_used` of its output tokens went into the answer: not those that came after it was given
    up, or that were begun anew. `receipt` is None if the node has not sent one; `code` says why it
    was left before the answer's end.
    """

    node: PeerId
    units: Units
    amount_nano: int
    tokens_used: int
    receipt: Signed[Receipt] | None = None
    acceptance: Signed[Acceptance] | None = None
    code: Code | None = None

    @classmethod
    def of(cls, result: AttemptResult, *, tokens_used: int, code: Code | None = None) -> Self:
        """Of an attempt whose node has signed for it."""
        node, signed = result.receipt.message.node, (result.receipt, result.acceptance)
        return cls(node, result.units, result.amount_nano, tokens_used, *signed, code)


@dataclass(frozen=True, slots=True)
class PurchaseResult:
    """The whole answer's ending: `units` are the prompt as its first node counted it, and the
    output; `amount_nano` is the sum over `parts`, one for each node that delivered or charges
    something. `reason` says why an answer ended early, where it did: `deadline_exceeded`."""

    finish: Finish
    units: Units
    amount_nano: int
    parts: tuple[PurchasePart, ...]
    reason: Code | None = None

    @classmethod
    def over(
        cls, parts: Sequence[PurchasePart], finish: Finish, *, reason: Code | None = None
    ) -> Self:
        """The sum of the parts, of which there is at least one."""
        # What is not text is one piece, and counted whole by the node that delivered it.
        most = {name: max(getattr(part.units, name) for part in parts) for name in UNIT_NAMES}
        most["input_tokens"] = parts[0].units.input_tokens
        most["cached_tokens"] = parts[0].units.cached_tokens
        most["output_tokens"] = sum(part.tokens_used for part in parts)
        units = Units(**most)
        amount_nano = sum(part.amount_nano for part in parts)
        return cls(finish, units, amount_nano, tuple(parts), reason)

    @property
    def receipt(self) -> Signed[Receipt] | None:
        """The last one that a node signed."""
        signed = [part.receipt for part in self.parts if part.receipt is not None]
        return signed[-1] if signed else None

    @property
    def agrees(self) -> bool:
        """Whether each node counted what we did."""
        signed = [part.acceptance for part in self.parts if part.acceptance is not None]
        return all(acceptance.message.agrees for acceptance in signed)
