"""What becomes of a purchase whose client sends its request again, or hangs up.

- With an `Idempotency-Key`, equal requests of one account are one purchase, for a day: those that
  come while it runs follow it from its start, later ones get the same reply. It does not end with
  its clients. The key is claimed durably before anything is bought. A refusal that cost nothing
  gives the key free.
- A client that counts its retries (`x-stainless-retry-count`, as the stock clients do) and hangs up
  on a whole answer is waited for a moment: its next try gets that purchase.
- A client that asked for it (`x-capacloud-keep`) lets its purchase run on.
- Any other purchase ends with its client, at once.

What was made of a whole answer that its client did not get is on the shelf for a while, under the
id of its generation. A stream without a key is not kept: its client has seen what it paid for.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from coordinator.buyer.job_name import JobName
from coordinator.errors import CoordinatorError
from coordinator.gateway.bridge import Bridge, BridgeClosedError
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.errors import ApiError, Headers, Problem, api_error_of, error_of
from coordinator.gateway.http.fair_places import Place
from coordinator.gateway.http.kept.recording import Recording
from coordinator.gateway.http.responses import Reply, Response, Send
from coordinator.gateway.market_side.answers import AnswerShelf
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import JobId, PeerId

log = structlog.get_logger(__name__)

# Says that nothing was bought for this reply.
REPLAYED: Headers = ((b"idempotent-replayed", b"true"),)
# Purchases whose clients may come back within seconds; more, and the oldest is given up.
_RESENDS_MAX = 1_024


class ResendableRequest(Protocol):
    """What the keeper has to know of a request, whatever protocol brought it."""

    @property
    def idempotency_key(self) -> str | None: ...

    @property
    def retry_count(self) -> int | None:
        """How often a stock client has sent it before; None of others."""
        ...

    @property
    def is_asked_to_keep(self) -> bool:
        """Whether the client wants its purchase to go on without it."""
        ...

    def take_place(self) -> Place | None:
        """Its place among all requests, which the taker has to leave."""
        ...


@dataclass(slots=True)
class Purchaser:
    """Whose purchase it is, and what tells it from others. `produce` makes the reply; `partial` is
    the body with what there is of the answer when it is given up, empty for nothing."""

    account: PeerId
    name: JobName
    request_digest: bytes
    is_streamed: bool
    produce: Callable[[], Awaitable[Reply]]
    partial: Callable[[], bytes]

    @property
    def job_id(self) -> JobId:
        """Fixed from here on."""
        return self.name.tell()


@dataclass(slots=True, eq=False)
class _Running:
    """A purchase without a key, and the task that makes its reply."""

    purchaser: Purchaser
    recording: Recording = field(default_factory=Recording)
    task: "asyncio.Task[None] | None" = None

    @property
    def is_unread(self) -> bool:
        """There is a reply, and no client has it or will."""
        recording = self.recording
        return recording.has_begun and not (recording.readers or recording.was_read)


class Keeper:
    """One per gateway, on the asyncio thread. `shelf` is touched in trio only, through `bridge`."""

    def __init__(self, bridge: Bridge, shelf: AnswerShelf, config: GatewayConfig) -> None:
        self._bridge = bridge
        self._shelf = shelf
        self._config = config
        self._keyed: dict[tuple[PeerId, str], tuple[bytes, Recording]] = {}
        self._left: dict[_Running, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, request: ResendableRequest, purchaser: Purchaser) -> Reply:
        """The reply to a request that buys something. Raises ApiError."""
        key = request.idempotency_key
        if key is not None:
            return await self._serve_keyed(request, key, purchaser)
        if purchaser.is_streamed:
            return await purchaser.produce()
        return await self._serve_whole(request, purchaser)

    async def content(self, account: PeerId, job_id: JobId) -> Reply | None:
        """What is on the shelf of a generation."""
        found = await self._bridge.call(_find, self._shelf, account, _job_name(job_id))
        if found is None:
            return None
        recording = Recording()
        recording.load(found)
        return _Follower(recording)

    async def _serve_keyed(
        self, request: ResendableRequest, key: str, purchaser: Purchaser
    ) -> Reply:
        # The key itself is the client's own word, and may say something of it.
        name = f"key/{hashlib.sha256(key.encode()).hexdigest()}"
        place = (purchaser.account, name)
        known = self._keyed.get(place)
        if known is None:
            recording = Recording()
            self._keyed[place] = (purchaser.request_digest, recording)
            self._start(self._run_keyed(recording, name, purchaser), request)
        else:
            digest, recording = known
            if digest != purchaser.request_digest:
                raise _another_request()
        follower = _Follower(recording, REPLAYED if known is not None else ())
        await follower.wait_begun()
        return follower

    async def _run_keyed(self, recording: Recording, name: str, purchaser: Purchaser) -> None:
        account, shelf, for_s = purchaser.account, self._shelf, self._config.idempotency_s
        try:
            found = await self._bridge.call(_claim, shelf, purchaser, name, for_s)
            if isinstance(found, ApiError):
                recording.fail(found)
            elif found is not None:
                recording.load(found, REPLAYED)
            else:
                # A whole answer is durable before its client has it: what comes after is a replay.
                made = recording if purchaser.is_streamed else Recording()
                error = await _record(made, purchaser)
                if error is None or made.has_begun:
                    data = made.to_bytes()
                    await self._bridge.call(_put, shelf, account, name, data, for_s)
                    if made is not recording:
                        recording.load(data)
                else:
                    # The key is free before its client knows, which may be back at once.
                    await self._bridge.call(_drop, shelf, account, name)
                    recording.fail(error)
        except (CoordinatorError, RemoteProtocolError) as error:
            log.error("answer_not_kept", job_id=purchaser.job_id, error=str(error))
            code = error.code if isinstance(error, CoordinatorError) else Code.INTERNAL
            recording.fail(error_of(code, "the market cannot keep the answer"))
        finally:
            if not recording.has_ended:
                recording.fail(api_error_of(BridgeClosedError("the gateway is shutting down")))
            del self._keyed[account, name]

    async def _serve_whole(self, request: ResendableRequest, purchaser: Purchaser) -> Reply:
        running = self._take_left(purchaser) if request.retry_count else None
        headers = REPLAYED
        if running is None:
            running, headers = _Running(purchaser), ()
            running.task = self._start(self._run_whole(running), request)
        follower = _Follower(running.recording, headers, on_left=self._on_left(request, running))
        await follower.wait_begun()
        return follower

    async def _run_whole(self, running: _Running) -> None:
        try:
            error = await _record(running.recording, running.purchaser)
            if error is not None:
                running.recording.fail(error)
        except asyncio.CancelledError:
            await _record_partial(running.recording, running.purchaser.partial())
        if running.is_unread:
            await self._shelve(running)

    def _on_left(self, request: ResendableRequest, running: _Running) -> Callable[[], None]:
        """What to do when the client of this request is gone, or has all of the reply."""

        def leave() -> None:
            recording = running.recording
            # A refusal is told to the client that heard it: its next try is a new one.
            if recording.readers or recording.was_read or recording.error is not None:
                return
            if recording.has_ended:
                if running.is_unread:
                    self._start(self._shelve(running))
            elif not (request.is_asked_to_keep or request.retry_count is not None):
                assert running.task is not None, "it runs"
                running.task.cancel()
            if request.retry_count is not None:
                self._wait_for_resend(running)

        return leave

    def _wait_for_resend(self, running: _Running) -> None:
        self._left[running] = None
        if len(self._left) > _RESENDS_MAX:
            self._give_up(next(iter(self._left)))
        loop = asyncio.get_running_loop()
        loop.call_later(self._config.resend_within_s, self._give_up, running)

    def _give_up(self, running: _Running) -> None:
        if running in self._left:
            del self._left[running]
            if running.task is not None and not running.recording.has_ended:
                running.task.cancel()

    def _take_left(self, purchaser: Purchaser) -> _Running | None:
        """The purchase that an earlier try of this client has left: each is taken up once."""
        wanted = (purchaser.account, purchaser.request_digest)
        for running in self._left:
            left = running.purchaser
            if (left.account, left.request_digest) == wanted:
                del self._left[running]
                return running
        return None

    async def _shelve(self, running: _Running) -> None:
        purchaser, data = running.purchaser, running.recording.to_bytes()
        name, for_s = _job_name(purchaser.job_id), self._config.content_s
        try:
            await self._bridge.call(_claim, self._shelf, purchaser, name, for_s)
            await self._bridge.call(_put, self._shelf, purchaser.account, name, data, for_s)
        except CoordinatorError as error:
            log.error("answer_not_kept", job_id=purchaser.job_id, error=str(error))

    def _start(
        self, work: Coroutine[Any, Any, None], request: ResendableRequest | None = None
    ) -> "asyncio.Task[None]":
        """Run on without the request, in its place: what runs counts, also if no client waits."""
        task = asyncio.ensure_future(work)
        place = None
        if request is not None:
            place = request.take_place()
        self._tasks.add(task)

        def end(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if place is not None:
                place.leave()
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("keeping_crashed", exc_info=error)

        task.add_done_callback(end)
        return task


class _Follower:
    """A `Reply` that follows a recording. `on_left` is called when its client has it or is gone."""

    def __init__(
        self,
        recording: Recording,
        headers: Headers = (),
        *,
        on_left: Callable[[], None] = lambda: None,
    ) -> None:
        self._recording = recording
        self._headers = headers
        self._on_left = on_left
        recording.readers += 1

    @property
    def status(self) -> int:
        return self._recording.status

    async def wait_begun(self) -> None:
        """Raises ApiError if there is no reply."""
        try:
            await self._recording.wait_begun()
        except BaseException:
            # Cancelled, too: the client is gone.
            self._leave()
            raise

    async def send_to(self, send: Send, more_headers: Headers) -> None:
        try:
            await self._recording.follow(send, (*more_headers, *self._headers))
            self._recording.was_read = True
        finally:
            self._leave()

    def _leave(self) -> None:
        self._recording.readers -= 1
        self._on_left()


async def _record(recording: Recording, purchaser: Purchaser) -> ApiError | None:
    """Make the reply; returns why there is none."""
    try:
        reply = await purchaser.produce()
        await reply.send_to(recording.send, ())
    except CoordinatorError as error:
        return api_error_of(error)
    except Exception as error:
        # The boundary of one purchase: its clients get a problem in the API's shape.
        log.error("request_crashed", job_id=purchaser.job_id, exc_info=error)
        return error_of(Code.INTERNAL, "")
    return None


async def _record_partial(recording: Recording, body: bytes) -> None:
    if body:
        await Response(200, body).send_to(recording.send, ())
    else:
        recording.fail(error_of(Code.CANCELLED, ""))


def _job_name(job_id: JobId) -> str:
    return f"job/{job_id}"


def _another_request() -> ApiError:
    return ApiError(
        Problem(
            409,
            "another request was sent with this Idempotency-Key: use a new key for it, or send the "
            "same body",
            code="idempotency_key_reused",
            param="Idempotency-Key",
        )
    )


# In trio, through the bridge.


async def _claim(
    shelf: AnswerShelf, purchaser: Purchaser, name: str, for_s: float
) -> bytes | ApiError | None:
    """None if the purchase is to be made: nothing has the name, or what had it was cut off by the
    end of its process, and its nodes were told to stop."""
    found = await shelf.claim(
        purchaser.account, name, purchaser.request_digest, purchaser.job_id, for_s=for_s
    )
    if found is not None and found.request_digest != purchaser.request_digest:
        return _another_request()
    return None if found is None else found.data


async def _put(shelf: AnswerShelf, account: PeerId, name: str, data: bytes, for_s: float) -> None:
    await shelf.put(account, name, data, for_s=for_s)


async def _drop(shelf: AnswerShelf, account: PeerId, name: str) -> None:
    await shelf.drop(account, name)


async def _find(shelf: AnswerShelf, account: PeerId, name: str) -> bytes | None:
    found = await shelf.find(account, name)
    return None if found is None else found.data
