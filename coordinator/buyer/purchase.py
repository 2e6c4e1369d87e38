"""One purchase: what a buyer asked for, through as many attempts as it takes.

Retries are invisible until the first output: a node that refuses or falls silent before it costs
the buyer nothing but time. What follows the first output comes from that one node; a cut is told.
"""

import structlog
import trio

from coordinator.buyer.attempt import Attempt, AttemptResult, AttemptTerms
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.leaser import Leaser
from coordinator.buyer.result import PurchasePart, PurchaseResult
from coordinator.buyer.settlements import Settlements
from coordinator.buyer.spec import JobSpec
from protocol.blame import Observation, blame_for, needs_second_opinion
from protocol.client_session import ClientJob
from protocol.clock import Clock
from protocol.countersigning import Delivery
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError, may_succeed_elsewhere
from protocol.generation import GenerationInput
from protocol.grants import EarlierAttempts, Granted, check_terms
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.limits import ATTEMPTS_MAX
from protocol.messages import JobRequest, Receipt
from protocol.net.errors import NetError
from protocol.net.pool import StreamPool
from protocol.payload import Chunk, JobInput, SaltedPayload
from protocol.pricing import Units

log = structlog.get_logger(__name__)

# A dial over a relay takes tens of milliseconds; a node that needs seconds is no use to anyone.
OPEN_WITHIN_S = 5.0


class Purchase:
    """Iterate over it for the chunks, then read `result`. Made by `MarketClient.buy`.

    `deadline` is a trio time; the purchase is given up then.
    """

    def __init__(
        self,
        request: Signed[JobRequest],
        payload: SaltedPayload,
        spec: JobSpec,
        *,
        key: SigningKey,
        pool: StreamPool,
        leaser: Leaser,
        settlements: Settlements,
        clock: Clock,
    ) -> None:
        self._request = request
        self._payload = payload
        self._spec = spec
        self._key = key
        self._pool = pool
        self._leaser = leaser
        self._settlements = settlements
        self._clock = clock
        self._deadline = trio.current_time() + spec.deadline_s
        # What earlier attempts left behind.
        self._exclude: list[PeerId] = []
        self._receipts: list[Signed[Receipt]] = []
        self._deliveries: list[Signed[Delivery]] = []
        self._last_failure: JobFailed | None = None
        self._was_input_blamed = False
        self._attempt: Attempt | None = None

    @property
    def terms(self) -> AttemptTerms | None:
        """Where the present attempt runs; known from its first output on."""
        return self._attempt.terms if self._attempt is not None else None

    @property
    def result(self) -> PurchaseResult | None:
        """None before the iteration has ended."""
        ended = self._attempt.result if self._attempt is not None else None
        return PurchaseResult.over([PurchasePart.of(ended)], ended.finish) if ended else None

    @property
    def granted(self) -> Granted:
        """The lease of the present attempt."""
        assert self._attempt is not None, "the purchase was not opened"
        return self._attempt.granted

    def ended(self) -> tuple[AttemptTerms, PurchaseResult]:
        """Where it ran and how it ended, of a purchase that was read to its end."""
        terms, result = self.terms, self.result
        assert terms is not None, "the purchase was not opened"
        assert result is not None, "the purchase was not read to its end"
        return terms, result

    def __aiter__(self) -> "Purchase":
        return self

    async def __anext__(self) -> Chunk:
        """The next chunk of the answer. Raises JobFailed if the stream is cut."""
        assert self._attempt is not None, "the purchase was not opened"
        return await self._attempt.__anext__()

    async def open(self) -> None:
        """Lease and open, at one node after another, until there is output. Raises JobFailed."""
        try:
            while not await self._try_next_node():
                pass
        except JobFailed as failure:
            failure.job_id = self._request.message.job_id
            raise

    def leave(self) -> None:
        """Be done with it: cancels what has not ended."""
        if self._attempt is not None:
            self._settlements.leave(self._attempt)

    async def _try_next_node(self) -> bool:
        """Whether an attempt has output now. Raises JobFailed if no other node can do better."""
        started_at = trio.current_time()
        granted = await self._lease()
        lease_ms = 1000 * (trio.current_time() - started_at)
        job = self._job(granted)
        try:
            attempt = await self._open_at(granted, job)
        except JobFailed as failure:
            # A node that cannot be reached must not be chosen again and again.
            delivery = job.delivery(failure.code, now_ms=self._clock.now_ms())
            self._deliveries.append(delivery)
            observation = _unopened(failure, started_at)
            self._settlements.leave_unopened(granted.lease, observation, delivery)
            self._note_failure(granted, failure)
            return False
        try:
            await attempt.wait_first_output(attempts=len(self._exclude) + 1, lease_ms=lease_ms)
        except JobFailed as failure:
            word = self._settlements.leave(attempt)
            if isinstance(word, AttemptResult):
                self._receipts.append(word.receipt)
            elif word is not None:
                self._deliveries.append(word)
            self._note_failure(granted, failure)
            return False
        except trio.Cancelled:
            self._settlements.leave(attempt)
            raise
        self._attempt = attempt
        return True

    async def _lease(self) -> Granted:
        """Raises JobFailed: what the coordinator says, or what the last node said."""
        if len(self._exclude) >= ATTEMPTS_MAX and self._last_failure is not None:
            raise self._last_failure
        try:
            with trio.fail_at(self._deadline):
                granted = await self._leaser.lease(
                    self._request,
                    earlier=EarlierAttempts(
                        tuple(self._exclude), tuple(self._receipts), tuple(self._deliveries)
                    ),
                    payer=self._spec.payer,
                )
            check_terms(granted, self._request)
        except trio.TooSlowError:
            raise JobFailed("no lease before the deadline", code=Code.DEADLINE_EXCEEDED) from None
        except NetError as error:
            raise JobFailed(
                f"the coordinator is gone: {error}", code=Code.COORDINATOR_LOST
            ) from error
        except RemoteProtocolError as error:
            # "Nothing else fits" says less than why the nodes that did fit have failed.
            if self._last_failure is not None and error.code is Code.NO_NODE_FITS:
                raise self._last_failure from error
            raise JobFailed(
                str(error), code=error.code, retry_after_ms=error.retry_after_ms
            ) from error
        return granted

    def _job(self, granted: Granted) -> ClientJob:
        return ClientJob(
            self._request,
            granted.lease,
            self._payload,
            self._key,
            silent_tokens=_silent_tokens(self._spec.job_input),
        )

    async def _open_at(self, granted: Granted, job: ClientJob) -> Attempt:
        lease, offer = granted.lease, granted.offer.message
        try:
            channel = await self._pool.open_channel(
                lease.message.node, addresses=offer.addresses, timeout_s=OPEN_WITHIN_S
            )
        except NetError as error:
            raise JobFailed(f"the node cannot be reached: {error}", code=Code.NODE_LOST) from error
        attempt = Attempt(job, channel, granted, clock=self._clock, deadline=self._deadline)
        try:
            attempt.send(job.open(now_ms=self._clock.now_ms()))
        except NetError as error:
            channel.close()
            raise JobFailed(f"the node takes no jobs: {error}", code=Code.NODE_LOST) from error
        return attempt

    def _note_failure(self, granted: Granted, failure: JobFailed) -> None:
        """Remember a failed attempt. Raises the failure if no other node can do better."""
        lease = granted.lease.message
        log.info(
            "attempt_failed",
            job_id=lease.job_id,
            node=lease.node,
            code=failure.code,
            attempt=lease.attempt,
        )
        if not failure.is_breach and needs_second_opinion(failure.code):
            # One node could say so of every input; a second one that agrees is believed.
            if self._was_input_blamed:
                raise failure
            self._was_input_blamed = True
        elif not (failure.is_breach or may_succeed_elsewhere(failure.code)):
            raise failure
        self._exclude.append(lease.node)
        self._last_failure = failure


def _silent_tokens(job_input: JobInput) -> int:
    """How many tokens this input makes a node send without a text: a node holds back as many bytes
    as a stop string may have begun, and a model that has to go on after its end-of-text token may
    repeat it."""
    if not isinstance(job_input, GenerationInput):
        return 0
    if job_input.ignore_eos:
        return job_input.max_tokens
    return max((len(stop.encode()) for stop in job_input.stop), default=0)


def _unopened(failure: JobFailed, started_at: float) -> Observation:
    """What there is to say of a node that was leased and did not take the job."""
    return Observation(
        code=failure.code,
        blame=blame_for(failure.code),
        first_output_ms=None,
        total_ms=1000 * (trio.current_time() - started_at),
        delivered=Units(),
        has_receipt=False,
    )
