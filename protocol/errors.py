"""What can go wrong between two parties, and whose fault it is.

A RemoteProtocolError is a peer's mistake: refuse, count, go on. A LocalProtocolError is a bug of
ours: crash and tell someone. Wire codes are stable: peers in other languages match on them.
"""

from dataclasses import dataclass

from protocol.vocabulary import OpenVocabulary


class Code(OpenVocabulary):
    """Why something was refused or failed, as sent on the wire.

    The vocabulary is open. A code that this version does not list is passed on as it came, and
    counts as a failure of who sent it: another node is tried, the same party is not asked again.
    """

    # The bytes are wrong.
    MALFORMED = "malformed"
    FRAME_TOO_LARGE = "frame_too_large"
    TRUNCATED = "truncated"
    TRAILING_BYTES = "trailing_bytes"
    UNKNOWN_VERSION = "unknown_version"
    UNEXPECTED_FRAME = "unexpected_frame"
    # The evidence is wrong.
    BAD_SIGNATURE = "bad_signature"
    WRONG_SIGNER = "wrong_signer"
    WRONG_AUDIENCE = "wrong_audience"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    REPLAYED = "replayed"
    DIGEST_MISMATCH = "digest_mismatch"
    PRICE_MISMATCH = "price_mismatch"
    UNTRUSTED_COORDINATOR = "untrusted_coordinator"
    RECEIPT_MISMATCH = "receipt_mismatch"
    # The offer is wrong.
    OFFER_REGRESSED = "offer_regressed"
    OFFER_CONFLICT = "offer_conflict"
    OFFER_IMPLAUSIBLE = "offer_implausible"
    WRONG_TOPIC = "wrong_topic"
    # The market cannot serve it.
    UNKNOWN_MODEL = "unknown_model"
    NO_NODE_FITS = "no_node_fits"
    OUT_OF_FUNDS = "out_of_funds"
    UNKNOWN_ACCOUNT = "unknown_account"
    UNKNOWN_API_KEY = "unknown_api_key"
    BUDGET_EXCEEDED = "budget_exceeded"
    RATE_LIMITED = "rate_limited"
    ALREADY_EXISTS = "already_exists"
    NOT_FOUND = "not_found"
    # The input is wrong.
    INVALID_INPUT = "invalid_input"
    PROMPT_TOO_LONG = "prompt_too_long"
    INPUT_TOO_LARGE = "input_too_large"
    INVALID_IMAGE = "invalid_image"
    IMAGE_TOO_LARGE = "image_too_large"
    POISON_INPUT = "poison_input"
    # The stream is wrong.
    UNSIGNED = "unsigned"
    EMPTY_OUTPUT = "empty_output"
    # The node cannot do it now.
    BUSY = "busy"
    DRAINING = "draining"
    ISOLATION_UNAVAILABLE = "isolation_unavailable"
    MODEL_UNAVAILABLE = "model_unavailable"
    WORKER_CRASHED = "worker_crashed"
    WORKER_HUNG = "worker_hung"
    OUT_OF_MEMORY = "out_of_memory"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    NODE_LOST = "node_lost"
    COORDINATOR_LOST = "coordinator_lost"
    STORAGE_FULL = "storage_full"
    INTERNAL = "internal"
    # The node does not have the rows that the job goes on from: the client has to send them.
    STATE_MISSING = "state_missing"


# Another node may well succeed: the same request can be leased again without asking the client. A
# node's clock or disk is its own trouble; if it was the request that is too old, the attempts are
# bounded, and the coordinator leases nothing past the deadline.
RETRYABLE_ELSEWHERE = frozenset(
    {
        Code.BUSY,
        Code.DRAINING,
        Code.ISOLATION_UNAVAILABLE,
        Code.MODEL_UNAVAILABLE,
        Code.WORKER_CRASHED,
        Code.WORKER_HUNG,
        Code.OUT_OF_MEMORY,
        Code.NODE_LOST,
        Code.PRICE_MISMATCH,
        Code.UNTRUSTED_COORDINATOR,
        Code.EXPIRED,
        Code.NOT_YET_VALID,
        Code.STORAGE_FULL,
        Code.INTERNAL,
    }
)

# A coordinator's own troubles, which pass: what else it answers to a receipt is its last word.
RETRYABLE_LATER = frozenset(
    {
        Code.BUSY,
        Code.RATE_LIMITED,
        Code.DRAINING,
        Code.DEADLINE_EXCEEDED,
        Code.COORDINATOR_LOST,
        Code.STORAGE_FULL,
        Code.INTERNAL,
    }
)


def may_succeed_elsewhere(code: Code) -> bool:
    """Whether another node is worth a try after this one ended a job so."""
    return code in RETRYABLE_ELSEWHERE or not code.is_known


class CapaError(Exception):
    """Base of every error that the project raises on purpose."""


class RemoteProtocolError(CapaError):
    """The other side broke the protocol or was refused; `code` is what the wire carries."""

    def __init__(self, message: str, *, code: Code, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_ms = retry_after_ms


class LocalProtocolError(CapaError):
    """Our own code asked for something that the protocol forbids."""


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """An error as it travels. `message` is for people, `code` is for programs."""

    code: Code
    message: str
    retry_after_ms: int | None = None

    def to_error(self) -> RemoteProtocolError:
        return RemoteProtocolError(self.message, code=self.code, retry_after_ms=self.retry_after_ms)


def leaves(error: BaseException) -> list[BaseException]:
    """The errors inside a group of groups; the error itself if it is none."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]
