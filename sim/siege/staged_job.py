"""One job at a staged node: the real frames and signatures, sent when and as its play wants.

The plays at the end are those that several attacks share.
"""

from contextlib import suppress
from dataclasses import replace

import trio
import trio.lowlevel

from protocol.codec import encode
from protocol.endings import Finish
from protocol.envelope import Signed, seal
from protocol.errors import Code
from protocol.framing import FrameType
from protocol.job_state import JobState
from protocol.keys import SigningKey
from protocol.messages import Lease, Receipt
from protocol.net.channels import Channel
from protocol.net.clock import SystemClock
from protocol.net.errors import NetError
from protocol.node_session import Accepted, Countersignature, NodeEvent, NodeJob, Opened
from protocol.payload import Chunk, OutputDigest
from protocol.pricing import Units
from protocol.receipts import draft_receipt

INPUT_TOKENS = 4
ANSWER_TOKENS = 8
# Longer than any attack waits for its victim.
_STALL_S = 300.0
_ACCEPTANCE_WITHIN_S = 2.0


class StagedJob:
    """`said` is what was really sent, and the base of an honest receipt."""

    def __init__(self, key: SigningKey, channel: Channel) -> None:
        self.channel = channel
        self.said: list[Chunk] = []
        self._key = key
        self._job = NodeJob(key)

    @property
    def lease(self) -> Signed[Lease]:
        assert self._job.terms is not None, "the job was not opened"
        return self._job.terms.lease

    async def wait_opened(self) -> Signed[Lease]:
        while not isinstance(await self._receive(), Opened):
            pass
        return self.lease

    def accept(self, input_tokens: int = INPUT_TOKENS) -> None:
        now_ms = SystemClock().now_ms()
        self._send(self._job.accepted(Units(input_tokens), queue_position=0, now_ms=now_ms))

    async def say(self, chunk: Chunk) -> None:
        """Send output, and what the client's signatures let go."""
        self.said.append(chunk)
        for frame in self._job.output(chunk):
            self._send(frame)
        await trio.lowlevel.checkpoint()
        with suppress(trio.WouldBlock):
            while True:
                frame_in = self.channel.receive_nowait()
                self._forward(self._job.receive(frame_in.type, frame_in.body))

    async def say_at_once(self, chunk: Chunk) -> None:
        """Send output that the client has not signed for the output before."""
        self.said.append(chunk)
        self._job.state = JobState.RUNNING
        await self.channel.send(FrameType.JOB_CHUNK, encode(chunk))

    async def end(self, receipt: Signed[Receipt]) -> bytes:
        """Send the receipt. Returns the client's acceptance as it was signed, or nothing."""
        with trio.move_on_after(_ACCEPTANCE_WITHIN_S), suppress(NetError):
            self._send(self._job.receipt(receipt))
            while True:
                event = await self._receive()
                if isinstance(event, Accepted):
                    return event.acceptance.raw
        return b""

    async def refuse(self, code: Code) -> None:
        """End it with an error and a receipt of nothing."""
        receipt = self.sign(Units(), Finish.REFUSED, code=code.value)
        self._send(self._job.error(code, "no", receipt=receipt))
        with trio.move_on_after(_ACCEPTANCE_WITHIN_S), suppress(NetError):
            while not isinstance(await self._receive(), Accepted):
                pass

    def sign(self, units: Units, finish: Finish, *, code: str = "") -> Signed[Receipt]:
        """A receipt with these units, and with what the client has signed so far."""
        assert self._job.terms is not None, "the job was not opened"
        digest = OutputDigest(self._job.terms.salt)
        for chunk in self.said:
            digest.add(chunk)
        receipt = receipt_of(self.lease, units, finish, code=code)
        signed = replace(
            receipt,
            output_digest=digest.hexdigest(),
            opening=self._job.terms.opening.raw,
            countersigned=self._job.window.countersigned,
        )
        return seal(self._key, signed)

    def sign_said(self, finish: Finish = Finish.STOP) -> Signed[Receipt]:
        """The honest receipt."""
        tokens = sum(len(chunk.token_ids) for chunk in self.said)
        return self.sign(Units(INPUT_TOKENS, tokens), finish)

    def _send(self, frame: tuple[FrameType, bytes]) -> None:
        self.channel.send_nowait(*frame)

    async def _receive(self) -> NodeEvent | None:
        frame = await self.channel.receive()
        event = self._job.receive(frame.type, frame.body)
        self._forward(event)
        return event

    def _forward(self, event: NodeEvent | None) -> None:
        if isinstance(event, Countersignature):
            for frame in event.frames:
                self._send(frame)


def receipt_of(lease: Signed[Lease], units: Units, finish: Finish, *, code: str = "") -> Receipt:
    """An unsigned receipt for a lease; nothing in it comes from the client."""
    receipt = draft_receipt(
        lease,
        units,
        finish,
        output_digest=OutputDigest(bytes(16)).hexdigest(),
        issued_at_ms=SystemClock().now_ms(),
        code=code,
    )
    return replace(receipt, first_output_ms=1, total_ms=2)


async def answer(job: StagedJob) -> None:
    """What an honest node does."""
    job.accept()
    for number in range(ANSWER_TOKENS):
        await job.say(Chunk((number,), f"word{number} "))
    await job.end(job.sign_said())


async def vanish(job: StagedJob) -> None:
    """Take the job and be gone."""
    job.channel.close()


async def stall(job: StagedJob) -> None:
    """Take the job and say nothing."""
    job.accept()
    await trio.sleep(_STALL_S)
