"""The files that a batch ends with, from its log. Blocks: call it in a thread."""

from contextlib import ExitStack
from dataclasses import dataclass

from coordinator.batches.blobs import BlobWriter, SealedFolder
from coordinator.batches.input_file import read_lines
from coordinator.batches.line_log import LineLog
from coordinator.batches.lines import error_line, read_envelope
from coordinator.gateway.market_side.filing import BatchError, StoredContent


@dataclass(frozen=True, slots=True)
class WrittenFiles:
    """Sizes; None of a file that would be empty, and is not there."""

    output_bytes: int | None
    error_bytes: int | None


def write_outputs(
    folder: SealedFolder,
    log: LineLog,
    content: StoredContent,
    *,
    endpoint: str,
    file_ids: tuple[str, str],
    unfinished: BatchError,
) -> WrittenFiles:
    """Answers into the first file, failures into the second one. Lines that were not run fail with
    `unfinished`. Durable when this returns.

    Raises FilesFullError, DamagedFileError.
    """
    with ExitStack() as stack:
        output, errors = (_Lazy(folder, file_id, stack) for file_id in file_ids)
        done: set[int] = set()
        for record in log.open():
            done.update(record.lines)
            (errors if record.has_failed else output).write(record.text)
        for number, text in read_lines(content):
            if number not in done:
                custom_id = read_envelope(text, endpoint).custom_id
                line_id = f"batch_req_{file_ids[1]}_{number}"
                errors.write(error_line(line_id, custom_id, unfinished.code, unfinished.message))
        written = WrittenFiles(output.finish(), errors.finish())
        folder.make_names_durable()
        return written


class _Lazy:
    """A file that is made when there is something to write."""

    def __init__(self, folder: SealedFolder, file_id: str, stack: ExitStack) -> None:
        self._folder = folder
        self._file_id = file_id
        self._stack = stack
        self._writer: BlobWriter | None = None

    def write(self, data: bytes) -> None:
        if self._writer is None:
            self._writer = self._folder.create(self._file_id)
            self._stack.callback(self._writer.close)
        self._writer.write(data)

    def finish(self) -> int | None:
        if self._writer is None:
            return None
        self._writer.finish()
        return self._writer.size
