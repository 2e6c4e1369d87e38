"""The node's half of a job, without I/O: collects the input, then frames what the caller produces
as far as the client has signed for it. See `protocol.job_frames`."""

from dataclasses import dataclass

from protocol.codec import decode, encode
from protocol.countersigning import JobAdmission, JobOpening, check_opening, terms_of
from protocol.envelope import Signed, open_envelope, open_vouched, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.job_frames import AcceptedBody, JobErrorBody, OpenBody, Outgoing
from protocol.job_state import JobEvent, JobState, next_state
from protocol.keys import SigningKey
from protocol.late_payloads import PayloadBinding, payload_of
from protocol.limits import MESSAGE_CHARS_MAX
from protocol.messages import Acceptance, JobRequest, Lease, Receipt
from protocol.output_window import OutputWindow
from protocol.payload import Chunk, OutputDigest, salted_digest
from protocol.pricing import Units
from protocol.receipts import check_acceptance
from protocol.windows import HashChain, node_chain

_OVER = (JobState.ENDED, JobState.REFUSED)
_SIGNABLE = (JobState.RUNNING, JobState.CANCELLING)
# Looked up for every token or window.
_RUNNING = JobState.RUNNING
_CHUNK, _PROGRESS = FrameType.JOB_CHUNK, FrameType.JOB_PROGRESS
_COUNTERSIGN = FrameType.JOB_COUNTERSIGN


@dataclass(frozen=True, slots=True)
class JobTerms:
    """What JOB_OPEN brought, verified: to be judged before more payload is taken."""

    request: Signed[JobRequest]
    lease: Signed[Lease]
    opening: Signed[JobOpening]
    payload: PayloadBinding
    salt: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """The whole payload has arrived, and is the one that its client signed for."""

    request: Signed[JobRequest]
    lease: Signed[Lease]
    payload: bytes


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The client wants no more; a receipt for what was delivered is due."""


@dataclass(frozen=True, slots=True)
class Countersignature:
    """The client signed for output; `frames` are those that its signature lets go."""

    frames: tuple[Outgoing, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The client's countersignature of the receipt; `agrees` is its verdict."""

    acceptance: Signed[Acceptance]


NodeEvent = Opened | CancelRequested | Countersignature | Accepted


class NodeJob:
    """See the module docstring. `terms` are known from JOB_OPEN on, and the `window` with them."""

    def __init__(self, key: SigningKey) -> None:
        self.state = JobState.LEASED
        self.terms: JobTerms | None = None
        self._key = key
        self._chain: HashChain | None = None
        self._window: OutputWindow | None = None
        self._digest: OutputDigest | None = None
        self._receipt: Signed[Receipt] | None = None
        self._payload = bytearray()
        self._is_whole = False

    @property
    def window(self) -> OutputWindow:
        assert self._window is not None, "the job was not opened"
        return self._window

    @property
    def output_digest(self) -> OutputDigest:
        """Over what was sent."""
        assert self._digest is not None, "the job was not opened"
        return self._digest

    def receive(self, frame_type: FrameType, body: bytes) -> NodeEvent | None:
        """What the frame completes, or None. Raises RemoteProtocolError."""
        if frame_type is _COUNTERSIGN:
            return self._receive_countersign(body)
        if frame_type is FrameType.JOB_OPEN:
            self.state = next_state(self.state, JobEvent.OPEN)
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

    def accepted(self, input_units: Units, *, queue_position: int, now_ms: int) -> Outgoing:
        """The job runs. Signs for how the input was counted."""
        assert self.terms is not None, "the job was not opened"
        assert self._chain is not None
        self.state = next_state(self.state, JobEvent.ACCEPT)
        self.window.accept_input(input_units.input_tokens)
        lease = self.terms.lease
        admission = JobAdmission(
            lease_digest=lease.digest,
            node=self._key.peer_id,
            input_units=input_units,
            anchor=self._chain.anchor,
            issued_at_ms=now_ms,
        )
        body = AcceptedBody(seal(self._key, admission).raw, queue_position)
        return FrameType.JOB_ACCEPTED, encode(body)

    def output(self, chunk: Chunk) -> list[Outgoing]:
        """The frames that may go now for output that was produced; perhaps none."""
        if self.state is _RUNNING and self.window.pass_on(len(chunk.token_ids)):
            self.output_digest.add(chunk)
            return [(_CHUNK, encode(chunk))]
        if self.state in _OVER:
            self.state = next_state(self.state, JobEvent.OUTPUT)
        return self._frames(self.window.push(chunk))

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

    def _frames(self, chunks: list[Chunk]) -> list[Outgoing]:
        frames: list[Outgoing] = []
        for chunk in chunks:
            self.state = next_state(self.state, JobEvent.OUTPUT)
            self.output_digest.add(chunk)
            frames.append((_CHUNK, encode(chunk)))
        progress = self.window.progress_due()
        if progress is not None:
            frames.append((_PROGRESS, progress))
        return frames

    def _receive_open(self, body: OpenBody) -> Opened | None:
        lease = open_envelope(body.lease, Lease)
        # The coordinator has checked the request's signature, and the opening has the client's own.
        request = open_vouched(body.request, JobRequest, digest=lease.message.request_digest)
        opening = open_envelope(body.opening, JobOpening)
        check_opening(opening, lease)
        payload = payload_of(request.message, lease.message, opening.message.binding)
        terms = terms_of(lease.message)
        self._chain = node_chain(self._key, lease.digest, terms)
        self._window = OutputWindow(
            terms,
            opening.message,
            self._chain,
            is_stream=lease.message.units_max.output_tokens > 0,
        )
        self._digest = OutputDigest(body.salt)
        self.terms = JobTerms(request, lease, opening, payload, body.salt)
        return self._collect(body.payload)

    def _receive_data(self, piece: bytes) -> Opened | None:
        if self.state is not JobState.OPENED or not piece or self._is_whole:
            raise RemoteProtocolError("payload is not due now", code=Code.UNEXPECTED_FRAME)
        return self._collect(piece)

    def _collect(self, piece: bytes) -> Opened | None:
        assert self.terms is not None
        named = self.terms.payload
        self._payload += piece
        if len(self._payload) < named.payload_bytes:
            return None
        payload = bytes(self._payload)
        self._payload.clear()
        self._is_whole = True
        if salted_digest(payload, self.terms.salt) != named.payload_digest:
            raise RemoteProtocolError(
                "the payload is not the one that was signed for", code=Code.DIGEST_MISMATCH
            )
        return Opened(self.terms.request, self.terms.lease, payload)

    def _receive_cancel(self) -> CancelRequested | None:
        # A cancel that crosses our last frame is no mistake: there is nothing left to cancel.
        if self.state in _OVER:
            return None
        self.state = next_state(self.state, JobEvent.CANCEL)
        return CancelRequested()

    def _receive_countersign(self, body: bytes) -> Countersignature | None:
        # It may cross our last frame, like a cancel.
        if self.state in _OVER:
            return None
        if self.state not in _SIGNABLE:
            raise RemoteProtocolError("nothing is to be signed", code=Code.UNEXPECTED_FRAME)
        released = self.window.take(body)
        return Countersignature(tuple(self._frames(released)))

    def _receive_acceptance(self, body: bytes) -> Accepted:
        if self._receipt is None:
            raise RemoteProtocolError("an acceptance without a receipt", code=Code.UNEXPECTED_FRAME)
        acceptance = open_envelope(body, Acceptance, signer=self._receipt.message.client)
        check_acceptance(acceptance, self._receipt)
        return Accepted(acceptance)
