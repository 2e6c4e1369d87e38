"""Files and batches as they are stored, whatever stores them: plain rows, and parts of lists."""

from dataclasses import dataclass
from enum import StrEnum

from coordinator.ledger.accounts import AccountId


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    account: AccountId
    filename: str
    purpose: str
    bytes: int
    created_at_ms: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list: at most `limit` rows behind `after`, newest first or oldest first."""

    limit: int
    after: str | None = None
    is_ascending: bool = False


class BatchStatus(StrEnum):
    """OpenAI's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """`labels` and `errors` are JSON as their reader gave it. `ended_at_ms` is the time of the
    last status: completed, failed, expired or cancelled."""

    id: str
    account: AccountId
    api_key_id: str
    endpoint: str
    input_file_id: str
    output_lifetime_s: int | None
    labels: str
    created_at_ms: int
    expires_at_ms: int
    takes: int = 0
    status: BatchStatus = BatchStatus.VALIDATING
    in_progress_at_ms: int | None = None
    finalizing_at_ms: int | None = None
    cancelling_at_ms: int | None = None
    ended_at_ms: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    errors: str = "[]"
    output_file_id: str | None = None
    error_file_id: str | None = None
    cached_tokens: int = 0
