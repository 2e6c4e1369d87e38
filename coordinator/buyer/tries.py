"""Which nodes a purchase has tried, what they left behind, and when it has tried enough."""

import structlog

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.result import AttemptResult
from coordinator.buyer.settlements import Word
from protocol.blame import needs_second_opinion
from protocol.countersigning import Delivery
from protocol.envelope import Signed
from protocol.errors import Code, may_succeed_elsewhere
from protocol.grants import EarlierAttempts
from protocol.ids import PeerId
from protocol.limits import ATTEMPTS_MAX
from protocol.messages import Lease, Receipt

# An attempt that delivers fewer tokens counts as one without progress: each part pays for the
# prompt again, so nodes that fail after a token must not make a purchase of sixty parts.
PROGRESS_TOKENS_MIN = 16
# A job of a batch gives way to any that is waited for: of those that made no progress so many in a
# row are tried, each after a longer pause. The node is paid for each prompt, so there is an end.
YIELDS_MAX = 16
_YIELD_PAUSE_S, _YIELD_PAUSE_MAX_S = 0.5, 30.0

log = structlog.get_logger(__name__)


class Tries:
    """Of one purchase, over all its parts. `count` are all attempts."""

    def __init__(self) -> None:
        self.count = 0
        self.last_failure: JobFailed | None = None
        self.was_input_blamed = False
        self._without_progress = 0
        self._yields_without_progress = 0
        self._exclude: list[PeerId] = []
        self._receipts: list[Signed[Receipt]] = []
        self._deliveries: list[Signed[Delivery]] = []

    @property
    def are_used_up(self) -> bool:
        if self._yields_without_progress >= YIELDS_MAX:
            return True
        return self._without_progress >= ATTEMPTS_MAX

    @property
    def yield_pause_s(self) -> float:
        """How long a job that has just given way leaves the seats to others."""
        number = self._yields_without_progress
        return min(_YIELD_PAUSE_S * 2 ** (number - 1), _YIELD_PAUSE_MAX_S) if number else 0.0

    @property
    def earlier(self) -> EarlierAttempts:
        """What the coordinator is told with the next ask for a lease."""
        return EarlierAttempts(tuple(self._exclude), tuple(self._receipts), tuple(self._deliveries))

    def note_granted(self) -> None:
        """A lease was granted: the coordinator knows what came of the earlier ones."""
        self.count += 1
        self._receipts.clear()
        self._deliveries.clear()

    def note_word(self, word: Word | None) -> None:
        """What was signed of an attempt that failed. A receipt that charges something counts with
        our own word beside it, which is handed in apart."""
        if isinstance(word, AttemptResult):
            if not word.receipt.message.amount_nano:
                self._receipts.append(word.receipt)
        elif word is not None:
            self._deliveries.append(word)

    def note_failure(
        self,
        lease: Lease,
        failure: JobFailed,
        *,
        delivered_tokens: int,
        has_yielded: bool = False,
    ) -> None:
        """Go on without this node. Raises the failure if no other one can do better. One that
        `has_yielded` has not failed: it made room for a job that is not of a batch."""
        log.info(
            "attempt_failed",
            job_id=lease.job_id,
            node=lease.node,
            code=failure.code,
            attempt=lease.attempt,
        )
        if not failure.is_breach:
            self._check_blame(failure, has_begun=delivered_tokens > 0)
        has_progress = delivered_tokens >= PROGRESS_TOKENS_MIN
        if has_progress:
            self._without_progress = self._yields_without_progress = 0
        elif has_yielded:
            self._yields_without_progress += 1
        else:
            self._without_progress += 1
        self._exclude.append(lease.node)
        self.last_failure = failure

    def avoid(self, node: PeerId) -> None:
        """Another node is wanted beside this one."""
        self._exclude.append(node)

    def forgive(self) -> None:
        """No other node is left: one that has failed may be back."""
        self._exclude.clear()

    def _check_blame(self, failure: JobFailed, *, has_begun: bool) -> None:
        """A node that has begun the answer takes the input, whatever it says then; only one that
        ends workers is not tried elsewhere."""
        if has_begun:
            if failure.code is Code.POISON_INPUT:
                raise failure
        elif needs_second_opinion(failure.code):
            # One node could say so of every input; a second one that agrees is believed.
            if self.was_input_blamed:
                raise failure
            self.was_input_blamed = True
        elif not may_succeed_elsewhere(failure.code):
            raise failure
