"""One leased job between a client and a node, without I/O.

    client                                  node
    JOB_OPEN(request, lease, payload…) ──▶
    JOB_DATA* (rest of the payload)    ──▶
                                       ◀──  JOB_ACCEPTED(input units, place in the queue)
                                       ◀──  JOB_CHUNK* (token ids and text, or data)
    JOB_CANCEL (at any time)           ──▶
                                       ◀──  JOB_RECEIPT, or JOB_ERROR with a receipt if one is due
    JOB_ACCEPTANCE                     ──▶

Both classes eat frames, keep `protocol.job_state`'s state, and return what happened. They check
what can be checked without a clock; the caller brings time, keys and sockets.
"""

from dataclasses import dataclass

from protocol.codec import decode, encode
from protocol.endings import FINISH_RULES
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.ids import sha256_digest
from protocol.job_state import JobEvent, JobState, next_state
from protocol.keys import SigningKey
from protocol.limits import KIB, MESSAGE_CHARS_MAX, OUTPUT_BYTES_MAX, SIGNED_BYTES_MAX
from protocol.messages import Acceptance, JobRequest, Lease, Receipt
from protocol.payload import Chunk, OutputDigest
from protocol.pricing import Units
from protocol.receipts import check_acceptance, check_receipt

# Small pieces let other jobs' tokens pass between them; see limits.FRAME_BYTES_MAX.
DATA_BYTES = 128 * KIB

# Type and body of a frame; the caller knows the channel.
Outgoing = tuple[FrameType, bytes]


@dataclass(frozen=True, slots=True)
class OpenBody:
    """JOB_OPEN: both envelopes as signed, and the first piece of the payload."""

    request: bytes
    lease: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class AcceptedBody:
    """JOB_ACCEPTED: what the input counts as, and how many jobs are ahead in the queue."""

    input_units: Units
    queue_position: int


@dataclass(frozen=True, slots=True)
class JobErrorBody:
    """JOB_ERROR: why there is no answer, or not all of it. A node that verified the lease adds its
    signed receipt (often of zero), so that the hold need not wait for its expiry."""

    code: Code
    message: str
    retry_after_ms: int | None = None
    receipt: bytes = b""

    def __post_init__(self) -> None:
        if len(self.message) > MESSAGE_CHARS_MAX or len(self.receipt) > SIGNED_BYTES_MAX:
            raise ValueError("the error is too long")


@dataclass(frozen=True, slots=True)
class Ended:
    """The node's last word, with our own count beside it."""

    receipt: Signed[Receipt]
    agrees: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The job ended in an error. `ended` is there if the node signed for what it had delivered."""

    code: Code
    message: str
    retry_after_ms: int | None
    ended: Ended | None


ClientEvent = AcceptedBody | Chunk | Ended | Refused


class ClientJob:
    """The client's half of a job: sends the input, counts the output, judges the receipt."""

    def __init__(self, request: Signed[JobRequest], lease: Signed[Lease], payload: bytes) -> None:
        self.state = JobState.LEASED
        self._request = request
        self._lease = lease
        self._payload = payload
        self._digest = OutputDigest()
        self._input_units = Units()
        self._output_tokens = 0
        self._output_bytes = 0

    @property
    def units(self) -> Units:
        """What we counted: output by ourselves, input as the node said when it accepted."""
        return Units(
            input_tokens=self._input_units.input_tokens,
            output_tokens=self._output_tokens,
            images=self._input_units.images,
        )

    @property
    def units_owed(self) -> Units:
        """What the node may charge if its last word does not reach us."""
        return self.units if self._owes_input else Units()

    @property
    def _owes_input(self) -> bool:
        """A failure before the first output is free; a job that we cancelled is not."""
        return self._output_tokens > 0 or self.state is JobState.CANCELLING

    def open(self) -> list[Outgoing]:
        """The frames that start the job."""
        self._advance(JobEvent.OPEN)
        head = OpenBody(self._request.raw, self._lease.raw, self._payload[:DATA_BYTES])
        frames = [(FrameType.JOB_OPEN, encode(head))]
        frames += [
            (FrameType.JOB_DATA, self._payload[start : start + DATA_BYTES])
            for start in range(DATA_BYTES, len(self._payload), DATA_BYTES)
        ]
        return frames

    def cancel(self) -> list[Outgoing]:
        """Nothing to send if the job has not started or has already ended."""
        if self.state not in (JobState.OPENED, JobState.QUEUED, JobState.RUNNING):
            return []
        self._advance(JobEvent.CANCEL)
        return [(FrameType.JOB_CANCEL, b"")]

    def receive(self, frame_type: FrameType, body: bytes) -> ClientEvent:
        """Raises RemoteProtocolError on anything that a correct node does not send."""
        if frame_type is FrameType.JOB_CHUNK:
            return self._receive_chunk(decode(Chunk, body))
        if frame_type is FrameType.JOB_ACCEPTED:
            return self._receive_accepted(decode(AcceptedBody, body))
        if frame_type is FrameType.JOB_RECEIPT:
            ended = self._judge(body, is_error=False)
            self._advance(JobEvent.RECEIPT)
            return ended
        if frame_type is FrameType.JOB_ERROR:
            return self._receive_error(decode(JobErrorBody, body))
        raise RemoteProtocolError(
            f"a node does not send {frame_type.name} here", code=Code.UNEXPECTED_FRAME
        )

    def acceptance(self, ended: Ended, key: SigningKey, *, now_ms: int) -> Signed[Acceptance]:
        """Countersign with our own counts, whether they agree or not."""
        return seal(
            key,
            Acceptance(
                receipt_digest=ended.receipt.digest,
                lease_id=self._lease.message.lease_id,
                client=key.peer_id,
                units=self.units,
                output_digest=self._digest.hexdigest(),
                agrees=ended.agrees,
                issued_at_ms=now_ms,
            ),
        )

    def _advance(self, event: JobEvent) -> None:
        self.state = next_state(self.state, event)

    def _receive_accepted(self, accepted: AcceptedBody) -> AcceptedBody:
        self._advance(JobEvent.ACCEPT)
        units_max = self._lease.message.units_max
        if accepted.input_units.output_tokens or not accepted.input_units.fits_in(units_max):
            raise RemoteProtocolError(
                "the node counts more input than the lease allows", code=Code.RECEIPT_MISMATCH
            )
        self._input_units = accepted.input_units
        return accepted

    def _receive_chunk(self, chunk: Chunk) -> Chunk:
        self._advance(JobEvent.OUTPUT)
        # What goes too far is not counted: there may be no number for it.
        tokens = self._output_tokens + len(chunk.token_ids)
        if tokens > self._lease.message.units_max.output_tokens:
            raise RemoteProtocolError(
                "the node sends more tokens than were leased", code=Code.RECEIPT_MISMATCH
            )
        output_bytes = self._output_bytes + len(chunk.text) + len(chunk.data)
        if output_bytes > OUTPUT_BYTES_MAX:
            raise RemoteProtocolError(
                "the node sends more bytes than an answer may have", code=Code.FRAME_TOO_LARGE
            )
        self._output_tokens, self._output_bytes = tokens, output_bytes
        self._digest.add(chunk)
        return chunk

    def _receive_error(self, error: JobErrorBody) -> Refused:
        ended = self._judge(error.receipt, is_error=True) if error.receipt else None
        self._advance(JobEvent.REFUSE if ended is None else JobEvent.RECEIPT)
        return Refused(error.code, error.message, error.retry_after_ms, ended)

    def _judge(self, raw: bytes, *, is_error: bool) -> Ended:
        receipt = open_envelope(raw, Receipt, signer=self._lease.message.node)
        check_receipt(receipt, self._lease)
        billed = receipt.message
        is_answer = not is_error and FINISH_RULES[billed.finish].is_answer
        if billed.amount_nano and not (is_answer or self._owes_input):
            # By whatever name the node ends it.
            self._input_units = Units()
        agrees = (billed.units, billed.output_digest) == (self.units, self._digest.hexdigest())
        return Ended(receipt, agrees)


@dataclass(frozen=True, slots=True)
class Opened:
    """Request, lease and the whole payload have arrived; signatures and digest are right."""

    request: Signed[JobRequest]
    lease: Signed[Lease]
    payload: bytes


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The client wants no more; a receipt for what was delivered is due."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The client's countersignature; `agrees` is its verdict."""

    acceptance: Signed[Acceptance]


NodeEvent = Opened | CancelRequested | Accepted


class NodeJob:
    """The node's half: collects the input, then frames what the caller produces."""

    def __init__(self) -> None:
        self.state = JobState.LEASED
        self._request: Signed[JobRequest] | None = None
        self._lease: Signed[Lease] | None = None
        self._receipt: Signed[Receipt] | None = None
        self._payload = bytearray()

    @property
    def terms(self) -> tuple[Signed[JobRequest], Signed[Lease]] | None:
        """Request and lease, known from JOB_OPEN on: to be judged before more payload is taken."""
        if self._request is None or self._lease is None:
            return None
        return self._request, self._lease

    def receive(self, frame_type: FrameType, body: bytes) -> NodeEvent | None:
        """What the frame completes, or None. Raises RemoteProtocolError."""
        if frame_type is FrameType.JOB_OPEN:
            return self._receive_open(decode(OpenBody, body))
        if frame_type is FrameType.JOB_DATA:
            return self._receive_data(body)
        if frame_type is FrameType.JOB_CANCEL:
            return self._receive_cancel()
        if frame_type is FrameType.JOB_ACCEPTANCE:
            return self._receive_acceptance(body)
        raise RemoteProtocolError(
            f"a client does not send {frame_type.name} here", code=Code.UNEXPECTED_FRAME
        )

    def accepted(self, input_units: Units, *, queue_position: int) -> Outgoing:
        self.state = next_state(self.state, JobEvent.ACCEPT)
        return FrameType.JOB_ACCEPTED, encode(AcceptedBody(input_units, queue_position))

    def chunk(self, chunk: Chunk) -> Outgoing:
        self.state = next_state(self.state, JobEvent.OUTPUT)
        return FrameType.JOB_CHUNK, encode(chunk)

    def receipt(self, receipt: Signed[Receipt]) -> Outgoing:
        self.state = next_state(self.state, JobEvent.RECEIPT)
        self._receipt = receipt
        return FrameType.JOB_RECEIPT, receipt.raw

    def error(
        self,
        code: Code,
        message: str,
        *,
        receipt: Signed[Receipt] | None,
        retry_after_ms: int | None = None,
    ) -> Outgoing:
        """End the job with an error, and with a receipt once the lease was verified."""
        event = JobEvent.REFUSE if receipt is None else JobEvent.RECEIPT
        self.state = next_state(self.state, event)
        self._receipt = receipt
        raw = receipt.raw if receipt is not None else b""
        body = JobErrorBody(code, message[:MESSAGE_CHARS_MAX], retry_after_ms, raw)
        return FrameType.JOB_ERROR, encode(body)

    def _receive_open(self, body: OpenBody) -> Opened | None:
        self.state = next_state(self.state, JobEvent.OPEN)
        self._request = open_envelope(body.request, JobRequest)
        self._lease = open_envelope(body.lease, Lease)
        return self._collect(body.payload)

    def _receive_data(self, piece: bytes) -> Opened | None:
        if self.state is not JobState.OPENED or not piece:
            raise RemoteProtocolError("payload is not due now", code=Code.UNEXPECTED_FRAME)
        return self._collect(piece)

    def _collect(self, piece: bytes) -> Opened | None:
        if self._request is None or self._lease is None:
            raise RemoteProtocolError("payload before its request", code=Code.UNEXPECTED_FRAME)
        request = self._request.message
        self._payload += piece
        if len(self._payload) < request.payload_bytes:
            return None
        payload = bytes(self._payload)
        self._payload.clear()
        if sha256_digest(payload) != request.payload_digest:
            raise RemoteProtocolError(
                "the payload is not the one that the request pins", code=Code.DIGEST_MISMATCH
            )
        return Opened(self._request, self._lease, payload)

    def _receive_cancel(self) -> CancelRequested | None:
        # A cancel that crosses our last frame is no mistake: there is nothing left to cancel.
        if self.state in (JobState.ENDED, JobState.REFUSED):
            return None
        self.state = next_state(self.state, JobEvent.CANCEL)
        return CancelRequested()

    def _receive_acceptance(self, body: bytes) -> Accepted:
        if self._receipt is None:
            raise RemoteProtocolError("an acceptance without a receipt", code=Code.UNEXPECTED_FRAME)
        acceptance = open_envelope(body, Acceptance, signer=self._receipt.message.client)
        check_acceptance(acceptance, self._receipt)
        return Accepted(acceptance)
