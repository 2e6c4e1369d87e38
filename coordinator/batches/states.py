"""How a batch moves from one status to the next. Pure: a row in, a row out.

    validating → in_progress → finalizing → completed
        │             ├─ the window is over ──→ expired
        │             ├─ its API key is revoked → failed
        └─→ failed    └─ cancel → cancelling → cancelled

A batch that ends before all its lines are answered has the answers that there are.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from coordinator.batches.line_log import LineRecord
from coordinator.db.filing_rows import BatchStatus, StoredBatch
from coordinator.gateway.market_side.filing import BatchError, BatchInfo, BatchRequest
from protocol.errors import Code

_CANCELLED = "this request was not run before the batch was cancelled"
_EXPIRED = "this request was not run within the batch's completion window"

# Enough to mend a file by.
ERRORS_MAX = 100

# A key that is revoked buys no more: what is left of its batches is not run under another one.
_REVOKED = BatchError(
    Code.UNKNOWN_API_KEY.value,
    "the API key that pays for this batch was revoked: the rest of it was not run",
)

_BEFORE_CANCEL = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


def take_up(batch: StoredBatch) -> StoredBatch:
    """A process begins to run it."""
    return replace(batch, takes=batch.takes + 1)


def begin(batch: StoredBatch, *, total: int, now_ms: int) -> StoredBatch:
    """Its lines are good requests."""
    if batch.status is not BatchStatus.VALIDATING:
        return batch
    return replace(batch, status=BatchStatus.IN_PROGRESS, total=total, in_progress_at_ms=now_ms)


def fail(batch: StoredBatch, errors: Sequence[BatchError], *, now_ms: int) -> StoredBatch:
    return replace(with_errors(batch, errors), status=BatchStatus.FAILED, ended_at_ms=now_ms)


def cancel(batch: StoredBatch, *, now_ms: int) -> StoredBatch:
    """Asked for by its user; one that is ending already ends as it would."""
    if batch.status not in _BEFORE_CANCEL:
        return batch
    return replace(batch, status=BatchStatus.CANCELLING, cancelling_at_ms=now_ms)


def with_errors(batch: StoredBatch, errors: Sequence[BatchError]) -> StoredBatch:
    return replace(batch, errors=json.dumps([asdict(error) for error in errors[:ERRORS_MAX]]))


def stop(batch: StoredBatch) -> StoredBatch:
    """Its API key was revoked."""
    return with_errors(batch, [_REVOKED])


def is_stopped(batch: StoredBatch) -> bool:
    return any(error["code"] == _REVOKED.code for error in json.loads(batch.errors))


def unfinished(batch: StoredBatch) -> BatchError:
    """Why some of its lines are not run."""
    if batch.status is BatchStatus.CANCELLING:
        return BatchError("batch_cancelled", _CANCELLED)
    if is_stopped(batch):
        return _REVOKED
    waited_for = [error["message"] for error in json.loads(batch.errors)]
    return BatchError("batch_expired", "; ".join([_EXPIRED, *waited_for]))


def count(batch: StoredBatch, record: LineRecord) -> StoredBatch:
    """Some more lines are done."""
    done = len(record.lines)
    return replace(
        batch,
        completed=batch.completed + (0 if record.has_failed else done),
        failed=batch.failed + (done if record.has_failed else 0),
        input_tokens=batch.input_tokens + record.units.input_tokens,
        cached_tokens=batch.cached_tokens + record.units.cached_tokens,
        output_tokens=batch.output_tokens + record.units.output_tokens,
        cost_nano=batch.cost_nano + record.cost_nano,
    )


def uncounted(batch: StoredBatch) -> StoredBatch:
    """Before its log is read again."""
    return replace(
        batch,
        completed=0,
        failed=0,
        input_tokens=0,
        cached_tokens=0,
        output_tokens=0,
        cost_nano=0,
    )


def finalize(batch: StoredBatch, *, now_ms: int) -> StoredBatch:
    """No line is run any more: its files are being written."""
    if batch.status is not BatchStatus.IN_PROGRESS:
        return batch
    return replace(batch, status=BatchStatus.FINALIZING, finalizing_at_ms=now_ms)


def finish(
    batch: StoredBatch, *, output_file_id: str | None, error_file_id: str | None, now_ms: int
) -> StoredBatch:
    """Its files are there."""
    if batch.status is BatchStatus.CANCELLING:
        status = BatchStatus.CANCELLED
    elif batch.completed + batch.failed < batch.total:
        status = BatchStatus.FAILED if is_stopped(batch) else BatchStatus.EXPIRED
    else:
        status = BatchStatus.COMPLETED
    return replace(
        batch,
        status=status,
        output_file_id=output_file_id,
        error_file_id=error_file_id,
        ended_at_ms=now_ms,
    )


def info_of_batch(batch: StoredBatch) -> BatchInfo:
    ask = BatchRequest(
        batch.input_file_id, batch.endpoint, json.loads(batch.labels), batch.output_lifetime_s
    )
    stamps = {
        "in_progress": batch.in_progress_at_ms,
        "finalizing": batch.finalizing_at_ms,
        "cancelling": batch.cancelling_at_ms,
        batch.status.value: batch.ended_at_ms,
    }
    return BatchInfo(
        id=batch.id,
        ask=ask,
        status=batch.status.value,
        created_at_ms=batch.created_at_ms,
        expires_at_ms=batch.expires_at_ms,
        stamps_ms={name: at_ms for name, at_ms in stamps.items() if at_ms is not None},
        total=batch.total,
        completed=batch.completed,
        failed=batch.failed,
        input_tokens=batch.input_tokens,
        cached_tokens=batch.cached_tokens,
        output_tokens=batch.output_tokens,
        cost_nano=batch.cost_nano,
        errors=tuple(BatchError(**error) for error in json.loads(batch.errors)),
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
    )
