"""What the log of a batch keeps of lines that were answered, or have failed. Pure."""

from collections.abc import Sequence

from coordinator.batches.line_log import LineRecord
from coordinator.batches.lines import refused_line
from coordinator.batches.pieces import LineAnswer, Piece, answer_line, write_answers
from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.dialect import ChoiceAnswer
from protocol.ids import JobId, derive_ulid
from protocol.limits import TOKENS_MAX
from protocol.pricing import Units


def record_of_failure(
    batch_id: str, endpoint: str, lines: Sequence[tuple[int, str]], error: ApiError
) -> LineRecord:
    """`lines` are numbers and custom ids."""
    text = b"".join(
        refused_line(_line_id(batch_id, number), custom_id, error, endpoint=endpoint)
        for number, custom_id in lines
    )
    return LineRecord(tuple(number for number, _ in lines), True, (), Units(), 0, text)


def record_of_answers(
    batch_id: str,
    piece: Piece,
    choices: Sequence[ChoiceAnswer],
    job_ids: Sequence[JobId],
    created_s: int,
) -> LineRecord:
    """In a thread: writing vectors as text takes a while. Raises ApiError."""
    answers: list[LineAnswer] = write_answers(piece, choices, created_s=created_s)
    text = b"".join(
        answer_line(_line_id(batch_id, answer.line.number), answer, f"req_{job_ids[0]}")
        for answer in answers
    )
    return LineRecord(
        tuple(answer.line.number for answer in answers),
        False,
        tuple(job_ids),
        Units(
            min(sum(answer.units.input_tokens for answer in answers), TOKENS_MAX),
            min(sum(answer.units.output_tokens for answer in answers), TOKENS_MAX),
            sum(answer.units.images for answer in answers),
            cached_tokens=min(sum(answer.units.cached_tokens for answer in answers), TOKENS_MAX),
        ),
        sum(answer.cost_nano for answer in answers),
        text,
    )


def _line_id(batch_id: str, number: int) -> str:
    return f"batch_req_{derive_ulid(batch_id, f'line/{number}')}"
