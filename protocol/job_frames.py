"""The frames of one leased job between a client and a node, and their bodies.

    client                                          node
    JOB_OPEN(request, lease, opening, payload…) ──▶
    JOB_DATA* (rest of the payload)             ──▶
                                                ◀──  JOB_ACCEPTED(admission, place in the queue)
                                                ◀──  JOB_CHUNK* (token ids and text, or data)
                                                ◀──  JOB_PROGRESS (at first output, every window)
    JOB_COUNTERSIGN (for each progress)         ──▶
    JOB_CANCEL (at any time)                    ──▶
                                                ◀──  JOB_RECEIPT, or JOB_ERROR with a receipt if due
    JOB_ACCEPTANCE                              ──▶

The client's half is `protocol.client_session`, the node's `protocol.node_session`. Both eat frames,
keep `protocol.job_state`'s state, and return what happened. They check what can be checked without
a clock; the caller brings time, keys and sockets.
"""

from dataclasses import dataclass

from protocol.errors import Code
from protocol.framing import FrameType
from protocol.limits import KIB, MESSAGE_CHARS_MAX, SALT_BYTES, SIGNED_BYTES_MAX

# Small pieces let other jobs' tokens pass between them; see limits.FRAME_BYTES_MAX.
DATA_BYTES = 128 * KIB

# Type and body of a frame; the caller knows the channel.
Outgoing = tuple[FrameType, bytes]


@dataclass(frozen=True, slots=True)
class OpenBody:
    """JOB_OPEN: three envelopes as signed, the salt of the job's digests, and the first piece of
    the payload."""

    request: bytes
    lease: bytes
    opening: bytes
    salt: bytes
    payload: bytes

    def __post_init__(self) -> None:
        if len(self.salt) != SALT_BYTES:
            raise ValueError(f"a salt has {SALT_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class AcceptedBody:
    """JOB_ACCEPTED: the node's `JobAdmission` as signed, and how many jobs were ahead in the
    queue."""

    admission: bytes
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
