"""What one job was given, and the receipt for it.

What is billed is what was sent, which `protocol.node_session` counts and hashes; never what the
worker says that it made. Here the input is counted, and what the worker makes is held to the lease.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from capanode.engines.base import Completed, Produced, Started
from protocol.endings import Finish
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest
from protocol.job_frames import DATA_BYTES
from protocol.keys import SigningKey
from protocol.limits import KIB
from protocol.messages import Lease, Receipt
from protocol.node_session import NodeJob
from protocol.payload import Chunk, salted_digest
from protocol.pricing import UNIT_NAMES, Units
from protocol.receipts import draft_receipt

# With four bytes to a character this stays far below a frame, whatever the script.
_TEXT_CHARS = 16 * KIB


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a job took, in milliseconds from its opening; as the receipt says it."""

    queued_ms: int
    first_output_ms: int
    total_ms: int


class Meter:
    """Counts one leased job, which `job` sends."""

    def __init__(self, lease: Signed[Lease], job: NodeJob) -> None:
        assert job.terms is not None, "only an opened job is metered"
        self._lease = lease
        self._job = job
        self._units_max = job.terms.payload.units_max
        self._started: Started | None = None
        self._end_token: int | None = None
        self._end_stop: int | None = None
        self._profile = ""
        self._input = Units()
        self._produced_tokens = 0

    @property
    def units(self) -> Units:
        """What has been delivered."""
        return self._with_output(self._job.window.sent_tokens)

    @property
    def produced(self) -> Units:
        """What the worker made, sent or not."""
        return self._with_output(self._produced_tokens)

    def _with_output(self, tokens: int) -> Units:
        return replace(self._input, output_tokens=tokens)

    def accept(self, started: Started, *, profile: str = "") -> None:
        """`profile` is what computes. Raises RemoteProtocolError if the input counts as more than
        the client leased."""
        input_units = started.input_units
        leased = self._units_max
        if input_units.output_tokens or not input_units.fits_in(leased):
            raise RemoteProtocolError(
                f"the input counts {_counts(input_units)}, the client allows {_counts(leased)}",
                code=Code.INPUT_TOO_LARGE,
            )
        # Where the lease has no price for cached tokens, its client may not know of them.
        is_counted = self._lease.message.price.cached_nano_per_mtok is not None
        self._input = input_units if is_counted else replace(input_units, cached_tokens=0)
        self._started, self._profile = started, profile

    def end(self, finished: Completed) -> None:
        self._end_token, self._end_stop = finished.end_token, finished.end_stop

    def has_room_for(self, chunk: Chunk) -> bool:
        """False if the client leased less output than the input asks for: then the answer ends."""
        tokens = self._produced_tokens + len(chunk.token_ids)
        if tokens > self._units_max.output_tokens:
            return False
        self._produced_tokens = tokens
        return True

    def sign(
        self, key: SigningKey, finish: Finish, *, code: str, timing: Timing, now_ms: int
    ) -> Signed[Receipt]:
        """The receipt for what has been delivered."""
        terms = self._job.terms
        assert terms is not None, "only an opened job is metered"
        receipt = draft_receipt(
            self._lease,
            self.units,
            finish,
            output_digest=self._job.output_digest.hexdigest(),
            issued_at_ms=now_ms,
            code=code,
            queued_ms=timing.queued_ms,
            first_output_ms=timing.first_output_ms,
            total_ms=timing.total_ms,
            opening=terms.opening.raw,
            countersigned=self._job.window.countersigned,
            input_digest=self._input_digest(terms.salt),
            prefix_tokens=self._started.prefix_tokens if self._started else 0,
            end_token=self._end_token,
            profile=self._profile,
            end_stop=self._end_stop,
        )
        return seal(key, receipt)

    def _input_digest(self, salt: bytes) -> Digest | None:
        """Salted like all digests of a job, because a short prompt could be guessed from it."""
        if self._started is None or not self._started.input_digest:
            return None
        return salted_digest(bytes.fromhex(self._started.input_digest), salt)


def _counts(units: Units) -> str:
    counts = (f"{getattr(units, name)} {name}" for name in UNIT_NAMES if name != "output_tokens")
    return ", ".join(counts)


def chunks_of(event: Produced) -> Sequence[Chunk]:
    """The event in pieces that fit a frame: one, but for a large embedding; none if it is empty."""
    text, data = event.text, event.data
    if not (event.token_ids or text or data):
        return ()
    if len(text) <= _TEXT_CHARS and len(data) <= DATA_BYTES:
        return (Chunk(event.token_ids, text, data),)
    pieces, token_ids = [], event.token_ids
    while token_ids or text or data:
        pieces.append(Chunk(token_ids, text[:_TEXT_CHARS], data[:DATA_BYTES]))
        token_ids, text, data = (), text[_TEXT_CHARS:], data[DATA_BYTES:]
    return pieces
