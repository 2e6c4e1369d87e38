"""Clients that cost a market something: each bad habit that was seen, against real nodes.

A bad client has an account with money in it. While it `is_active` it acts every second or two.
"""

import random
from collections import Counter
from typing import Any

import trio

from coordinator.buyer.spec import DEADLINE_S
from protocol.client_session import ClientJob
from protocol.clock import Clock
from protocol.codec import encode
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.generation import GenerationInput
from protocol.grants import Granted
from protocol.ids import ULID_ENTROPY_BYTES, JobId, new_ulid
from protocol.limits import SALT_BYTES
from protocol.messages import NO_CONSTRAINTS, JobRequest, Objective, Task
from protocol.net.errors import NetError
from protocol.net.pool import Channel
from protocol.payload import Chunk, SaltedPayload
from protocol.pricing import Units
from sim.buyer import SimClient
from sim.trace import Trace, Voice
from sim.vices import Habit
from sim.workload import MODELS

_PAUSE_S = (0.5, 2.5)
_ACTS_WITHIN_S = 20.0
_OPEN_WITHIN_S = 5.0
_PROMPT_WORDS = 40
_TOKENS = 60


class BadClient(SimClient):
    """`misbehave` is its life, beside `run`."""

    def __init__(
        self, habit: Habit, trace: Trace, *args: Any, rng: random.Random, **kw: Any
    ) -> None:
        super().__init__(*args, rng=rng, **kw)
        self.is_active = False
        self.habit = habit
        # What it was told so far.
        self.codes: Counter[Code] = Counter()
        self._squatted: set[JobId] = set()
        self._trace = trace
        self._rng = rng

    async def misbehave(self) -> None:
        act = {
            Habit.HOARDING: self._hoard,
            Habit.UNSIGNING: self._take,
            Habit.GARBLING: self._garble,
            Habit.REPLAYING: self._replay,
            Habit.SQUATTING: self._squat,
        }[self.habit]
        while True:
            await trio.sleep(self._rng.uniform(*_PAUSE_S))
            if not self.is_active:
                continue
            code: Code | str = "-"
            with Voice(self.name).speaking(), trio.move_on_after(_ACTS_WITHIN_S):
                try:
                    await act()
                except RemoteProtocolError as error:
                    code = error.code
                    self.codes[error.code] += 1
                except NetError:
                    code = "disconnected"
            self._trace.add(self.name, "misbehaved", habit=self.habit, code=code)

    async def _hoard(self) -> None:
        await self._lease()

    async def _take(self) -> None:
        await self._run(*await self._lease(), garbage_after=None)

    async def _garble(self) -> None:
        await self._run(*await self._lease(), garbage_after=2)

    async def _replay(self) -> None:
        request, granted, payload = await self._lease()
        try:
            await self.leaser.lease(request)
        finally:
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(self._run_in_vain, request, granted, payload)

    async def _squat(self) -> None:
        """Lease under an id that another client has chosen, once each, and take the answer."""
        others = self.auditor.job_ids(but_of=self.key.peer_id)
        taken = [job_id for job_id in others if job_id not in self._squatted]
        job_id = self._rng.choice(taken) if taken else None
        if job_id is not None:
            self._squatted.add(job_id)
        await self._run(*await self._lease(job_id))

    async def _lease(
        self, job_id: JobId | None = None
    ) -> tuple[Signed[JobRequest], Granted, SaltedPayload]:
        now_ms = self._now_ms()
        words = " ".join(self._rng.choices("abcdefgh", k=_PROMPT_WORDS))
        job_input = GenerationInput(prompt=words, max_tokens=_TOKENS, ignore_eos=True)
        payload = SaltedPayload(encode(job_input), self._rng.randbytes(SALT_BYTES))
        entropy = self._rng.randbytes(ULID_ENTROPY_BYTES)
        request = JobRequest(
            job_id=job_id or JobId(new_ulid(now_ms, entropy)),
            client=self.key.peer_id,
            coordinator=self.leaser.coordinator,
            model=MODELS[Task.CAUSAL_LM],
            task=Task.CAUSAL_LM,
            payload_digest=payload.digest,
            payload_bytes=len(payload.data),
            units_max=Units(_PROMPT_WORDS, _TOKENS),
            units_expected=Units(_PROMPT_WORDS, _TOKENS),
            objective=Objective.PRICE,
            constraints=NO_CONSTRAINTS,
            issued_at_ms=now_ms,
            deadline_at_ms=now_ms + int(1_000 * DEADLINE_S),
        )
        signed = seal(self.key, request)
        return signed, await self.leaser.lease(signed), payload

    async def _run_in_vain(
        self, request: Signed[JobRequest], granted: Granted, payload: SaltedPayload
    ) -> None:
        try:
            await self._run(request, granted, payload)
        except (RemoteProtocolError, NetError):
            return  # The node has seen that it is opened twice.

    async def _run(
        self,
        request: Signed[JobRequest],
        granted: Granted,
        payload: SaltedPayload,
        *,
        garbage_after: int | None = None,
    ) -> None:
        """Open a job and take what comes, until the node has had enough. Signs for nothing."""
        channel = await self.job_pool.open_channel(
            granted.lease.message.node,
            addresses=granted.offer.message.addresses,
            timeout_s=_OPEN_WITHIN_S,
        )
        job = ClientJob(request, granted.lease, payload, self.key)
        try:
            for frame_type, body in job.open(now_ms=self._now_ms()):
                channel.send_nowait(frame_type, body)
            await self._take_all(job, channel, garbage_after)
        finally:
            channel.close()

    async def _take_all(self, job: ClientJob, channel: Channel, garbage_after: int | None) -> None:
        chunks = 0
        while True:
            frame = await channel.receive()
            event = job.receive(frame.type, frame.body)
            if isinstance(event, Chunk):
                chunks += 1
                if chunks == garbage_after:
                    channel.send_nowait(FrameType.JOB_COUNTERSIGN, b"garbage")
            if frame.type in (FrameType.JOB_RECEIPT, FrameType.JOB_ERROR):
                return

    def _now_ms(self) -> int:
        clock: Clock = self.steady
        return clock.now_ms()
