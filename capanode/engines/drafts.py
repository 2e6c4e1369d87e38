"""Drafts: tokens that are decoded before they are chosen, and kept where the choice agrees.

A step takes each job's last token together with those that are drafted to follow it. Every row of
it is computed as in a step of its own, and the next tokens are chosen from it one after another, by
the same code and in the same state as without drafts. The first one that is not the drafted one
makes what was computed behind it void. So an answer is the same bit for bit, and only the number of
steps is another. `docs/decisions` 0019 has the measurements.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor

from capanode.engines.answering import accept_tokens
from capanode.engines.base import EngineEvent
from capanode.engines.detokenize import TokenBytes
from capanode.engines.drafter import Drafter
from capanode.engines.exact_logits import ExactLogits
from capanode.engines.generation import Generation
from capanode.engines.kv_cache import KvCache
from capanode.engines.token_choice import choose_next, score_next

# A step of so many rows, drafts included, still takes clearly less time than its tokens one by one.
DRAFTED_ROWS_MAX = 16

# What a row more costs of a step with one row is less, and depends on the processor: between 0.05
# and 0.3. A token is drafted only if it is as likely as that to be kept, with a margin.
_ODDS_MIN = 0.4


def plan_drafts(jobs: Sequence[Generation], room: int) -> list[list[int]]:
    """What to draft for each job: the likeliest tokens of all of them, at most `room` together."""
    spare = min(DRAFTED_ROWS_MAX - len(jobs), room)
    if spare <= 0:
        return [[] for _ in jobs]
    drafts = [_draft(job, spare) for job in jobs]
    # Odds only fall along a draft: what is left of one is its beginning.
    likeliest = sorted((-odds, row) for row, draft in enumerate(drafts) for _, odds in draft)
    kept = Counter(row for _, row in likeliest[:spare])
    return [[token for token, _ in draft[: kept[row]]] for row, draft in enumerate(drafts)]


def _draft(job: Generation, most: int) -> list[tuple[int, float]]:
    if job.drafter is None:
        job.drafter = Drafter()
    # The token behind the draft is the answer's, too.
    most = min(most, job.tokens_max - len(job.tokens) - 1)
    drafted = job.drafter.draft(job.tokens, most, odds_min=_ODDS_MIN)
    is_idle = drafted and job.rules is not None and job.rules.forbids(drafted[0][0])
    ends = (index for index, (token, _) in enumerate(drafted) if token in job.end_tokens)
    return [] if is_idle else drafted[: next(ends, len(drafted))]


@dataclass(slots=True)
class DraftedStep:
    """Tokens of one step: each job's last one, and its draft."""

    jobs: Sequence[Generation]
    drafts: Sequence[Sequence[int]]
    lengths: list[int] = field(init=False)  # of each job, before the step

    def __post_init__(self) -> None:
        self.lengths = [len(job.tokens) for job in self.jobs]

    @property
    def counts(self) -> list[int]:
        return [1 + len(draft) for draft in self.drafts]

    @property
    def tokens(self) -> list[int]:
        pairs = zip(self.jobs, self.drafts, strict=True)
        return [token for job, draft in pairs for token in (job.tokens[-1], *draft)]

    @property
    def positions(self) -> list[int]:
        pairs = zip(self.lengths, self.counts, strict=True)
        return [length - 1 + more for length, count in pairs for more in range(count)]

    def accept(
        self, logits: Tensor, exact: ExactLogits | None, pieces: TokenBytes
    ) -> tuple[list[EngineEvent], list[Generation]]:
        """As `accept_tokens`, with the logits [tokens, vocab] behind each token of the step."""
        events: list[EngineEvent] = []
        ended: list[Generation] = []
        firsts = accumulate(self.counts[:-1], initial=0)
        going = list(zip(self.jobs, firsts, self.drafts, strict=True))
        place = 0
        while going:
            jobs, rows = [job for job, _, _ in going], [first + place for _, first, _ in going]
            own, taken = logits[rows], exact.take(rows) if exact is not None else None
            tokens = choose_next(jobs, own, taken)
            found, over = accept_tokens(jobs, tokens, score_next(jobs, own, tokens, pieces))
            events += found
            ended += over
            going = [
                (job, first, draft)
                for (job, first, draft), token in zip(going, tokens, strict=True)
                if job not in over and place < len(draft) and draft[place] == token
            ]
            place += 1
        return events, ended

    def settle(self, cache: KvCache) -> None:
        """After `accept`: leave in the cache what a step for each accepted token would have."""
        for job, length, count in zip(self.jobs, self.lengths, self.counts, strict=True):
            job.cached = max(length, len(job.tokens) - 1)
            cache.clear(job.row, range(job.cached, length + count - 1))
