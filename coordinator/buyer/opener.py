"""Getting to a node: ask for a lease, dial, send the job.

A buyer that is cancelled at any moment of it leaves no lease behind: what was granted and not
opened is given back at once.
"""

import math

import trio

from coordinator.buyer.attempt import Attempt
from coordinator.buyer.continuation import is_whole
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.leaser import Leaser
from coordinator.buyer.parts import LeasedPart, SignedPart
from coordinator.buyer.settlements import Settlements
from coordinator.buyer.spec import JobSpec
from coordinator.buyer.tries import Tries
from protocol.blame import Blame, Observation, blame_for
from protocol.client_session import EMPTY_TOKENS_MAX, ClientJob
from protocol.clock import Clock
from protocol.countersigning import Delivery
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.generation import GenerationInput
from protocol.grants import Granted, check_terms
from protocol.keys import SigningKey
from protocol.late_payloads import PayloadBinding
from protocol.limits import SALT_BYTES
from protocol.messages import JobRequest
from protocol.net.errors import Backpressure, NetError
from protocol.net.pool import StreamPool
from protocol.payload import JobInput, SaltedPayload
from protocol.pricing import Units
from protocol.tensors import TensorInput

# A dial over a relay takes tens of milliseconds; a node that needs seconds is no use to anyone.
OPEN_WITHIN_S = 5.0
# A buyer that leaves while a lease is being granted waits so long for it, to give it back. It takes
# milliseconds, unless all nodes are busy: then nothing is granted either.
GRANTED_WITHIN_S = 2.0


class Opener:
    """What the purchases of one client share: the ways to the coordinator and to nodes."""

    def __init__(
        self, pool: StreamPool, leaser: Leaser, settlements: Settlements, *, clock: Clock
    ) -> None:
        self.leaser = leaser
        self.settlements = settlements
        self.clock = clock
        self._pool = pool

    async def open_attempt(
        self, part: SignedPart, key: SigningKey, tries: Tries, *, deadline: float
    ) -> tuple[Attempt | None, float]:
        """An attempt at a node that has been sent the job, and how many milliseconds leasing took;
        None if the node that was leased cannot be reached, which is noted in `tries`.

        Raises JobFailed: what the coordinator says, or what the last node said.
        """
        started_at = trio.current_time()
        granted = await self._lease(part, key, tries, deadline=deadline)
        lease_ms = 1000 * (trio.current_time() - started_at)
        tries.note_granted()
        job = _job_of(part, granted, key)
        return await self._open(part, granted, job, tries, deadline=deadline), lease_ms

    async def open_ahead(
        self, leased: LeasedPart, key: SigningKey, tries: Tries, *, deadline: float
    ) -> Attempt | None:
        """As `open_attempt`, under a lease that was taken ahead of this job."""
        tries.note_granted()
        part, granted = leased.part, leased.granted
        job = _job_of(part, granted, key, leased.binding)
        return await self._open(part, granted, job, tries, deadline=deadline)

    def give_back_ahead(
        self, request: Signed[JobRequest], granted: Granted, key: SigningKey
    ) -> None:
        """No job has come for a lease."""
        nothing = SaltedPayload(b"", bytes(SALT_BYTES))
        binding = PayloadBinding(nothing.digest, 1, granted.lease.message.units_max)
        self._let_go(granted, ClientJob(request, granted.lease, nothing, key, binding=binding))

    async def _open(
        self,
        part: SignedPart,
        granted: Granted,
        job: ClientJob,
        tries: Tries,
        *,
        deadline: float,
    ) -> Attempt | None:
        started_at = trio.current_time()
        try:
            return await self._dial(granted, job, deadline=deadline, spec=part.spec)
        except trio.Cancelled:
            self._let_go(granted, job)
            raise
        except JobFailed as failure:
            # A node that cannot be reached must not be chosen again and again.
            blame = blame_for(failure.code)
            if isinstance(failure.__cause__, Backpressure):
                blame = Blame.NEUTRAL  # our own bound of what is under way to one node
            tries.note_word(self._give_back(granted, job, failure.code, started_at, blame=blame))
            tries.note_failure(granted.lease.message, failure, delivered_tokens=0)
            return None

    async def _lease(
        self, part: SignedPart, key: SigningKey, tries: Tries, *, deadline: float
    ) -> Granted:
        if tries.are_used_up and tries.last_failure is not None:
            raise tries.last_failure
        try:
            if self.leaser.is_local:
                # It knows the job's deadline, and waits for nothing beyond it but a commit.
                granted = await self.leaser.lease(
                    part.request, earlier=tries.earlier, payer=part.spec.payer
                )
            else:
                with trio.fail_at(deadline):
                    granted = await self._ask_elsewhere(part, key, tries)
            check_terms(granted, part.request)
        except trio.TooSlowError:
            raise JobFailed("no lease before the deadline", code=Code.DEADLINE_EXCEEDED) from None
        except NetError as error:
            raise JobFailed(
                f"the coordinator is gone: {error}", code=Code.COORDINATOR_LOST
            ) from error
        except RemoteProtocolError as error:
            # "Nothing else fits" says less than why the nodes that did fit have failed.
            if tries.last_failure is not None and error.code is Code.NO_NODE_FITS:
                raise tries.last_failure from error
            raise JobFailed(
                str(error), code=error.code, retry_after_ms=error.retry_after_ms
            ) from error
        return granted

    async def _ask_elsewhere(self, part: SignedPart, key: SigningKey, tries: Tries) -> Granted:
        """Ask a coordinator over the network; a buyer that is cancelled meanwhile waits for the
        answer, to give the lease back. Raises NetError, RemoteProtocolError."""
        granted: Granted | None = None
        error: NetError | RemoteProtocolError | None = None
        is_taken = False
        asking = trio.CancelScope(shield=True)

        async def hurry() -> None:
            try:
                await trio.sleep_forever()
            finally:
                asking.deadline = trio.current_time() + GRANTED_WITHIN_S

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hurry)
                with asking:
                    try:
                        granted = await self.leaser.lease(
                            part.request, earlier=tries.earlier, payer=part.spec.payer
                        )
                    except (NetError, RemoteProtocolError) as caught:
                        error = caught
                nursery.cancel_scope.cancel()
            is_taken = True
        finally:
            if granted is not None and not is_taken:
                self._let_go(granted, _job_of(part, granted, key))
        if error is not None:
            raise error
        assert granted is not None, "a lease that was not cut short is granted or refused"
        return granted

    async def _dial(
        self, granted: Granted, job: ClientJob, *, deadline: float, spec: JobSpec | None = None
    ) -> Attempt:
        node, offer = granted.lease.message.node, granted.offer.message
        try:
            channel = await self._pool.open_channel(
                node, addresses=offer.addresses, timeout_s=OPEN_WITHIN_S
            )
        except Backpressure as error:
            raise JobFailed(f"the node has much of ours: {error}", code=Code.BUSY) from error
        except NetError as error:
            raise JobFailed(f"the node cannot be reached: {error}", code=Code.NODE_LOST) from error
        attempt = Attempt(
            job,
            channel,
            granted,
            clock=self.clock,
            deadline=deadline,
            is_whole=spec is not None and is_whole(spec),
            needs_state=spec is not None and _needs_state(spec.job_input),
        )
        try:
            attempt.send(job.open(now_ms=self.clock.now_ms()))
        except Backpressure as error:
            channel.close()
            raise JobFailed(f"the node has much of ours: {error}", code=Code.BUSY) from error
        except NetError as error:
            channel.close()
            raise JobFailed(f"the node takes no jobs: {error}", code=Code.NODE_LOST) from error
        return attempt

    def _let_go(self, granted: Granted, job: ClientJob) -> None:
        """The buyer has left. A coordinator in this process believes that the lease was not opened;
        one elsewhere believes its node, which is asked to cancel the job before it runs."""
        if self.leaser.is_local:
            self._give_back(granted, job, Code.CANCELLED, trio.current_time())
        else:
            self.settlements.run_soon(self._open_and_leave, granted, job)

    async def _open_and_leave(self, granted: Granted, job: ClientJob) -> None:
        started_at = trio.current_time()
        try:
            attempt = await self._dial(granted, job, deadline=math.inf)
        except JobFailed:
            self._give_back(granted, job, Code.CANCELLED, started_at)
        else:
            self.settlements.leave(attempt)

    def _give_back(
        self,
        granted: Granted,
        job: ClientJob,
        code: Code,
        started_at: float,
        *,
        blame: Blame | None = None,
    ) -> Signed[Delivery]:
        """Say that nothing came of a lease, as its node was never asked to run it."""
        delivery = job.delivery(code, now_ms=self.clock.now_ms())
        observation = Observation(
            code=code,
            blame=blame or blame_for(code),
            first_output_ms=None,
            total_ms=1000 * (trio.current_time() - started_at),
            delivered=Units(),
            has_receipt=False,
            was_opened=False,
        )
        self.settlements.leave_unopened(granted.lease, observation, delivery)
        return delivery


def _job_of(
    part: SignedPart, granted: Granted, key: SigningKey, binding: PayloadBinding | None = None
) -> ClientJob:
    return ClientJob(
        part.request,
        granted.lease,
        part.payload,
        key,
        silent_tokens=_silent_tokens(part.spec.job_input),
        binding=binding,
    )


def _needs_state(job_input: JobInput) -> bool:
    if not isinstance(job_input, TensorInput) or job_input.place is None:
        return False
    return job_input.place.is_continued


def _silent_tokens(job_input: JobInput) -> int:
    """How many tokens this input makes a node send without a text: a node holds back as many bytes
    as a stop string may have begun, and a model that has to go on after its end-of-text token may
    repeat it. The rest of an answer may have no text at all."""
    if not isinstance(job_input, GenerationInput):
        return 0
    if job_input.ignore_eos:
        return job_input.max_tokens
    held_back = max((len(stop.encode()) for stop in job_input.stop), default=0)
    return held_back + (EMPTY_TOKENS_MAX if job_input.prefix_tokens else 0)
