"""How a batch ends: its files are written, and its row says where they are."""

from functools import partial

import structlog

from coordinator.batches import states
from coordinator.batches.blobs import BlobReader
from coordinator.batches.line_log import LineLog
from coordinator.batches.output_files import write_outputs
from coordinator.batches.services import BatchServices
from coordinator.db.filing_rows import StoredBatch

log = structlog.get_logger(__name__)


async def hand_out(
    services: BatchServices, batch: StoredBatch, line_log: LineLog, content: BlobReader
) -> StoredBatch:
    """Write what the batch's users get, whatever is answered of it. Returns the batch that has
    ended, as it is stored. Raises CoordinatorError."""
    files = services.files
    file_ids = (files.new_id(), files.new_id())
    written = await services.runner.run_read(
        partial(
            write_outputs,
            files.folder,
            line_log,
            content,
            endpoint=batch.endpoint,
            file_ids=file_ids,
            unfinished=states.unfinished(batch),
        )
    )
    sizes = (written.output_bytes, written.error_bytes)
    rows = [
        files.row(
            file_id,
            batch.account,
            filename=f"batch_{batch.id}_{name}.jsonl",
            purpose="batch_output",
            size=size,
            lifetime_s=batch.output_lifetime_s,
        )
        for file_id, size, name in zip(file_ids, sizes, ("output", "error"), strict=True)
        if size is not None
    ]
    output_id, error_id = (
        file_id if size is not None else None for file_id, size in zip(file_ids, sizes, strict=True)
    )
    ended = states.finish(
        batch,
        output_file_id=output_id,
        error_file_id=error_id,
        now_ms=services.clock.now_ms(),
    )
    await services.rows.end_batch(ended, rows)
    for row in rows:
        files.usage.add(row.account, row.bytes)
    log.info("batch_ended", batch=ended.id, status=ended.status.value)
    return ended
