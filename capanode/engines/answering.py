"""From chosen tokens to what engines say of their jobs: text, and ends."""

from collections.abc import Sequence

from capanode.engines.base import EngineEvent
from capanode.engines.generation import FinishReason, Generation
from protocol.generation import TokenScore


def accept_tokens(
    jobs: Sequence[Generation], tokens: Sequence[int], scores: Sequence[TokenScore | None]
) -> tuple[list[EngineEvent], list[Generation]]:
    """Let each job take its next token; returns what came of it, and the jobs that ended."""
    events: list[EngineEvent] = []
    ended: list[Generation] = []
    for job, token, score in zip(jobs, tokens, scores, strict=True):
        if job.is_over:  # An answer that was checked.
            events.append(job.finished(FinishReason.STOP))
            ended.append(job)
            continue
        produced, reason = job.accept(token, score)
        if job.failure is not None:
            events.append(job.failed(job.failure))
            ended.append(job)
            continue
        if produced is not None:
            events.append(produced)
        if reason is not None:
            events.append(job.finished(reason))
            ended.append(job)
    return events, ended
