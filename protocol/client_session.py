"""The client's half of a job, without I/O: sends the input, counts and signs for the output, and
judges the receipt. See `protocol.job_frames`."""

from dataclasses import dataclass

from protocol.codec import decode, encode
from protocol.countersigning import (
    Delivery,
    JobAdmission,
    JobOpening,
    check_admission,
    terms_of,
)
from protocol.endings import FINISH_RULES
from protocol.envelope import Signed, open_envelope, read_unverified, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.job_frames import DATA_BYTES, AcceptedBody, JobErrorBody, OpenBody, Outgoing
from protocol.job_state import JobEvent, JobState, next_state
from protocol.keys import SigningKey
from protocol.late_payloads import PayloadBinding
from protocol.limits import OUTPUT_BYTES_MAX
from protocol.messages import Acceptance, JobRequest, Lease, Receipt
from protocol.payload import Chunk, OutputDigest, SaltedPayload
from protocol.pricing import Units
from protocol.receipts import check_receipt
from protocol.windows import ChainReader, ClientChains, parse_progress

# Tokens in a row that add no text: the bytes of one character, and tokens that are never shown,
# such as those around a model's channels. One window of a stranger, so that a node that sends
# nothing else is signed for that at most. A stop string may be held back on top.
EMPTY_TOKENS_MAX = 16
# Tokens of a whole answer without any text. More is no answer: a node must not earn a record, nor
# the price of a short answer, by tokens that cannot be read.
EMPTY_ANSWER_TOKENS_MAX = 8
# Chunks without a token of their own: held-back text, and the pieces of an answer in bytes, whose
# smallest useful size is some KiB.
CHUNKS_BESIDE_TOKENS_MAX = 1_024

# Looked up for every token or window.
_CHUNK, _PROGRESS = FrameType.JOB_CHUNK, FrameType.JOB_PROGRESS
_COUNTERSIGN = FrameType.JOB_COUNTERSIGN


@dataclass(frozen=True, slots=True)
class Admitted:
    """The node runs the job, and counts its input as this."""

    input_units: Units
    queue_position: int


@dataclass(frozen=True, slots=True)
class WindowReached:
    """The node signed for what it has sent; `frames` are our countersignature, to be sent."""

    frames: tuple[Outgoing, ...]


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


ClientEvent = Admitted | Chunk | WindowReached | Ended | Refused


class ClientJob:
    """One job, for one client. So many `silent_tokens` may show no text, beside those of every
    answer: a node holds back what may become a stop string. `binding` names the payload where the
    request leaves it open."""

    def __init__(
        self,
        request: Signed[JobRequest],
        lease: Signed[Lease],
        payload: SaltedPayload,
        key: SigningKey,
        *,
        silent_tokens: int = 0,
        binding: PayloadBinding | None = None,
    ) -> None:
        self.state = JobState.LEASED
        self._request = request
        self._lease = lease
        self._payload = payload
        self._key = key
        self._binding = binding
        self._units_max = lease.message.units_max if binding is None else binding.units_max
        self._terms = terms_of(lease.message)
        self._chains = ClientChains(key, lease.digest, self._terms)
        self._is_stream = lease.message.units_max.output_tokens > 0
        self._silent_tokens = silent_tokens
        self._progress: ChainReader | None = None
        self._digest = OutputDigest(payload.salt)
        self._input_units = Units()
        self._output_tokens = 0
        self._output_bytes = 0
        # Since the last text, or since the beginning.
        self._empty_tokens = 0
        self._has_text = False
        self._chunks = 0
        self._chunks_max = self._units_max.output_tokens + CHUNKS_BESIDE_TOKENS_MAX

    @property
    def units(self) -> Units:
        """What we counted: output by ourselves, input as the node said when it accepted."""
        return Units(
            input_tokens=self._input_units.input_tokens,
            output_tokens=self._output_tokens,
            images=self._input_units.images,
            tensor_elements=self._input_units.tensor_elements,
            cached_tokens=self._input_units.cached_tokens,
        )

    @property
    def units_owed(self) -> Units:
        """What the node may charge if its last word does not reach us."""
        return self.units if self._owes_input else Units()

    @property
    def _owes_input(self) -> bool:
        """A failure before the first output is free; a job that we cancelled is not."""
        return self._output_tokens > 0 or self.state is JobState.CANCELLING

    def open(self, *, now_ms: int) -> list[Outgoing]:
        """The frames that start the job."""
        self._advance(JobEvent.OPEN)
        opening = seal(
            self._key,
            JobOpening(
                lease_digest=self._lease.digest,
                client=self._key.peer_id,
                node=self._lease.message.node,
                input_anchor=self._chains.input_anchor,
                output_anchor=self._chains.output_anchor,
                issued_at_ms=now_ms,
                binding=self._binding,
            ),
        )
        data, salt = self._payload.data, self._payload.salt
        head = OpenBody(self._request.raw, self._lease.raw, opening.raw, salt, data[:DATA_BYTES])
        frames = [(FrameType.JOB_OPEN, encode(head))]
        frames += [
            (FrameType.JOB_DATA, data[start : start + DATA_BYTES])
            for start in range(DATA_BYTES, len(data), DATA_BYTES)
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
        if frame_type is _CHUNK:
            return self._receive_chunk(decode(Chunk, body))
        if frame_type is _PROGRESS:
            return self._receive_progress(body)
        if frame_type is FrameType.JOB_ACCEPTED:
            return self._receive_accepted(decode(AcceptedBody, body))
        if frame_type is FrameType.JOB_RECEIPT:
            return self._receive_receipt(body)
        if frame_type is FrameType.JOB_ERROR:
            return self._receive_error(decode(JobErrorBody, body))
        raise RemoteProtocolError(
            f"a node does not send {frame_type.name} here", code=Code.UNEXPECTED_FRAME
        )

    def acceptance(self, ended: Ended, *, now_ms: int) -> Signed[Acceptance]:
        """Countersign with our own counts, whether they agree or not."""
        return seal(
            self._key,
            Acceptance(
                receipt_digest=ended.receipt.digest,
                lease_id=self._lease.message.lease_id,
                client=self._key.peer_id,
                units=self.units,
                output_digest=self._digest.hexdigest(),
                agrees=ended.agrees,
                issued_at_ms=now_ms,
            ),
        )

    def delivery(self, code: Code, *, now_ms: int) -> Signed[Delivery]:
        """Our word on a job that ended without a receipt."""
        return seal(
            self._key,
            Delivery(
                lease_id=self._lease.message.lease_id,
                lease_digest=self._lease.digest,
                client=self._key.peer_id,
                units=self.units_owed,
                output_digest=self._digest.hexdigest(),
                code=code,
                issued_at_ms=now_ms,
            ),
        )

    def _advance(self, event: JobEvent) -> None:
        self.state = next_state(self.state, event)

    def _receive_accepted(self, accepted: AcceptedBody) -> Admitted:
        self._advance(JobEvent.ACCEPT)
        admission = read_unverified(accepted.admission, JobAdmission)
        check_admission(admission, self._lease)
        counted = admission.input_units
        if counted.output_tokens or not counted.fits_in(self._units_max):
            raise RemoteProtocolError(
                "the node counts more input than the lease allows", code=Code.RECEIPT_MISMATCH
            )
        self._input_units = counted
        self._progress = ChainReader(admission.anchor, self._terms.output_links)
        return Admitted(counted, accepted.queue_position)

    def _receive_chunk(self, chunk: Chunk) -> Chunk:
        self._advance(JobEvent.OUTPUT)
        self._chunks += 1
        is_empty = not (chunk.token_ids or chunk.text or chunk.data)
        if is_empty or self._chunks > self._chunks_max:
            # They cost the node nothing, and the client memory and time.
            raise RemoteProtocolError(
                "the node sends an empty chunk"
                if is_empty
                else f"the node sends more than {self._chunks_max} chunks",
                code=Code.UNEXPECTED_FRAME,
            )
        # What goes too far is not counted: there may be no number for it.
        tokens = self._output_tokens + len(chunk.token_ids)
        if tokens > self._units_max.output_tokens:
            raise RemoteProtocolError(
                "the node sends more tokens than were leased", code=Code.RECEIPT_MISMATCH
            )
        output_bytes = self._output_bytes + len(chunk.text) + len(chunk.data)
        if output_bytes > OUTPUT_BYTES_MAX:
            raise RemoteProtocolError(
                "the node sends more bytes than an answer may have", code=Code.FRAME_TOO_LARGE
            )
        empty_tokens = 0 if chunk.text else self._empty_tokens + len(chunk.token_ids)
        if empty_tokens > EMPTY_TOKENS_MAX + self._silent_tokens:
            raise self._empty_output(empty_tokens)
        self._output_tokens, self._output_bytes = tokens, output_bytes
        self._empty_tokens = empty_tokens
        self._has_text = self._has_text or bool(chunk.text)
        self._digest.add(chunk)
        return chunk

    def _empty_output(self, tokens: int) -> RemoteProtocolError:
        """What the node sent since the last text is not counted."""
        self._output_tokens -= self._empty_tokens
        self._empty_tokens = 0
        return RemoteProtocolError(
            f"the node sends {tokens} tokens without a text", code=Code.EMPTY_OUTPUT
        )

    def _receive_progress(self, body: bytes) -> WindowReached:
        index, link = parse_progress(body)
        if self._progress is None or not self._output_tokens:
            raise RemoteProtocolError("progress before output", code=Code.UNEXPECTED_FRAME)
        if index <= self._progress.index:
            raise RemoteProtocolError("progress was told twice", code=Code.UNEXPECTED_FRAME)
        if index > self._terms.output_index(self._output_tokens):
            raise RemoteProtocolError(
                "the node signs for more than it has sent", code=Code.RECEIPT_MISMATCH
            )
        self._progress.advance(index, link)
        links = self._chains.countersign(self._input_units.input_tokens, self._output_tokens)
        return WindowReached(((_COUNTERSIGN, links),))

    def _receive_receipt(self, raw: bytes) -> Ended:
        ended = self._judge(raw, is_error=False)
        is_answer = FINISH_RULES[ended.receipt.message.finish].is_answer
        is_long = self._output_tokens > EMPTY_ANSWER_TOKENS_MAX + self._silent_tokens
        if is_answer and is_long and not self._has_text:
            raise self._empty_output(self._empty_tokens)
        self._advance(JobEvent.RECEIPT)
        return ended

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
