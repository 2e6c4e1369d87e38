"""The input of a batch: its lines, and whether each is a request. Blocks: call it in a thread."""

from collections.abc import Iterator

from coordinator.batches.lines import (
    EMBEDDING_INPUTS_MAX,
    LINE_BYTES_MAX,
    LINES_MAX,
    LineError,
    count_inputs,
    read_envelope,
)
from coordinator.batches.states import ERRORS_MAX
from coordinator.gateway.market_side.filing import BatchError, StoredContent
from protocol.messages import Task

_BLANK = b" \t\r"


def read_lines(content: StoredContent) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 0. Raises LineError."""
    number = 0
    rest = bytearray()
    for piece in content.pieces():
        rest += piece
        *whole, last = rest.split(b"\n")
        for line in whole:
            if text := bytes(line).strip(_BLANK):
                yield number, text
            number += 1
        rest = bytearray(last)
        if len(rest) > LINE_BYTES_MAX:
            raise LineError("line_too_long", f"a line has {LINE_BYTES_MAX} bytes at most")
    if text := bytes(rest).strip(_BLANK):
        yield number, text


def check_input(content: StoredContent, endpoint: str, task: Task) -> tuple[int, list[BatchError]]:
    """How many lines there are, and what is wrong with them."""
    seen: set[str] = set()
    errors: list[BatchError] = []
    lines = inputs = number = 0
    try:
        for number, text in read_lines(content):
            lines += 1
            if lines > LINES_MAX or len(errors) == ERRORS_MAX:
                break
            try:
                envelope = read_envelope(text, endpoint)
                if envelope.custom_id in seen:
                    message = f"custom_id {envelope.custom_id[:64]!r} comes twice"
                    raise LineError("duplicate_custom_id", message, "custom_id")
                seen.add(envelope.custom_id)
                inputs += count_inputs(envelope) if task is Task.EMBEDDING else 0
            except LineError as error:
                errors.append(BatchError(error.code, str(error), number + 1, error.param))
    except LineError as error:
        errors.append(BatchError(error.code, str(error), number + 2))
    if not lines:
        errors.append(BatchError("empty_file", "the file has no lines"))
    if lines > LINES_MAX:
        errors.append(BatchError("too_many_lines", f"a batch has {LINES_MAX} lines at most"))
    if inputs > EMBEDDING_INPUTS_MAX:
        message = f"a batch has {EMBEDDING_INPUTS_MAX} texts to embed at most"
        errors.append(BatchError("too_many_inputs", message))
    return lines, errors
