"""The parts of one answer: the one that is bought now, and what the next one begins after."""

from collections.abc import Sequence
from dataclasses import replace

from coordinator.buyer.attempt import Attempt
from coordinator.buyer.continuation import Delivered, FirstPart, is_resumable, next_part
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.parts import RequestStamps, SignedPart, sign_part
from protocol.endings import Finish
from protocol.errors import Code
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.limits import PARTS_MAX
from protocol.messages import Lease
from protocol.money import format_credits
from protocol.receipts import charge_nano


class PurchaseProgress:
    """`begun` is the first part and `present` the one that is bought now. `delivered` is what all
    of them have got; None if another node cannot go on with the answer."""

    def __init__(self, begun: SignedPart, key: SigningKey) -> None:
        self.begun = begun
        self.present = begun
        self.delivered = Delivered(begun.payload.salt) if is_resumable(begun.spec) else None
        self.first: FirstPart | None = None
        self._key = key
        # How many tokens the parts before the present one have delivered.
        self._tokens_before = 0

    @property
    def has_begun(self) -> bool:
        """Whether there is something that a next part can begin after."""
        return bool(self.delivered)

    @property
    def tokens(self) -> int:
        """What the present part has delivered."""
        return len(self.delivered or ()) - self._tokens_before

    def note_left(self, attempt: Attempt) -> None:
        """An attempt has ended before the answer did."""
        if self.first is None and self.has_begun:
            self.first = _first_part(self.begun, attempt)

    def sign_anew(self, *, left_s: float, coordinator: PeerId, now_ms: int) -> None:
        """A lease that was taken ahead came to nothing: sign the job as any other, as the same
        purchase. Nothing was delivered, so that the answer begins here."""
        begun, name = self.begun, self.begun.spec.name
        stamps = RequestStamps(
            job_id=begun.request.message.job_id,
            salt=begun.payload.salt,
            coordinator=coordinator,
            now_ms=now_ms,
            part=name.next_part() if name is not None else 1,
        )
        spec = replace(begun.spec, deadline_s=left_s)
        self.begun = self.present = sign_part(spec, self._key, stamps)

    def sign_next(
        self,
        failure: JobFailed,
        *,
        spent_nano: int,
        left_s: float,
        coordinator: PeerId,
        now_ms: int,
    ) -> None:
        """What is left becomes the present part. Raises the failure if there can be no more."""
        number = self.present.request.message.part + 1
        if number >= PARTS_MAX:
            raise failure
        assert self.first is not None
        assert self.delivered is not None
        spec = replace(self.begun.spec, deadline_s=left_s)
        stamps = RequestStamps(
            job_id=self.begun.request.message.job_id,
            salt=self.begun.payload.salt,
            coordinator=coordinator,
            now_ms=now_ms,
            part=number,
            delivered_digest=self.delivered.digest,
        )
        following = next_part(spec, self.first, self.delivered, spent_nano=spent_nano)
        self.present = sign_part(following, self._key, stamps)
        self._tokens_before = len(self.delivered)

    def check_cost_max(self, leases: Sequence[Lease]) -> None:
        """Raises JobFailed if `max_cost` leaves less than the rest may cost at any of the nodes so
        far, whose leases these are."""
        left_nano, most = self.present.spec.constraints.max_cost_nano, self.present.spec.units_max
        if left_nano is None:
            return
        least_nano = min(charge_nano(lease.price, most, Finish.STOP) for lease in leases)
        if least_nano > left_nano:
            raise JobFailed(
                f"max_cost leaves {format_credits(left_nano)} credits, and the rest of the answer "
                f"may cost {format_credits(least_nano)}",
                code=Code.NO_NODE_FITS,
            )


def _first_part(begun: SignedPart, attempt: Attempt) -> FirstPart:
    lease, offer = attempt.granted.lease.message, attempt.granted.offer.message
    offered = [m for m in offer.models if m.manifest_digest == lease.model_digest]
    return FirstPart(
        request_digest=begun.request.digest,
        model_digest=lease.model_digest,
        input_tokens=attempt.input_units.input_tokens,
        context_tokens=offered[0].context_tokens if offered else 0,
    )
