"""What the node and its worker say to each other over one socket.

A frame is two big-endian u32 (bytes of header, bytes of blob), the header as a msgpack array, and
the blob raw, so that images and vectors are not copied through msgpack. All events of one engine
step travel in one frame. The worker is not trusted: the node checks every size, type and number
that it reads, and ends a worker that gets one wrong.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgpack

from capanode.engines.base import EngineEvent, EngineInfo, Failed, Finished, Produced, Started
from protocol.errors import CapaError, Code
from protocol.limits import (
    KIB,
    MESSAGE_CHARS_MAX,
    MIB,
    NAME_CHARS_MAX,
    OUTPUT_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    TOKENS_MAX,
)
from protocol.messages import SLOTS_MAX, Task
from protocol.pricing import Units

# One step's events: 256 jobs of 4 KiB each, far more than a step ever says.
HEADER_BYTES_MAX = MIB
# Several jobs may end in one step with a whole output each; `encode_events` splits above this.
BLOB_BYTES_MAX = 16 * MIB
assert max(PAYLOAD_BYTES_MAX, OUTPUT_BYTES_MAX) <= BLOB_BYTES_MAX

# Outputs up to here are cheaper inside the header than as part of the blob.
INLINE_BYTES_MAX = 4 * KIB

JOB_ID_CHARS_MAX = 64
# Above any step's: a started, a produced and a finished for each of the 256 jobs that slots allow.
EVENTS_MAX = 1_024
# A step yields one token a job; an engine that buffers for a stop string yields a few at once.
TOKENS_PER_EVENT_MAX = 4_096
TEXT_CHARS_MAX = 64 * KIB
FINISH_REASONS = frozenset({"stop", "length", "complete"})

_DIGEST_BYTES = 32
_PREFIX = struct.Struct(">II")


class Kind(IntEnum):
    """The first item of every header. Below 16: node to worker; above: worker to node."""

    START = 1
    CANCEL = 2
    PING = 3
    SHUTDOWN = 4
    READY = 16
    EVENTS = 17
    PONG = 18
    LOAD_FAILED = 19
    CANCELLED = 20


class EventKind(IntEnum):
    STARTED = 0
    PRODUCED = 1
    FINISHED = 2
    FAILED = 3


class WorkerProtocolError(CapaError):
    """The worker sent what no worker of ours would send: it is broken, or taken over."""


@dataclass(frozen=True, slots=True)
class Start:
    """`job_id` is this run of a job, and not used twice at once; `log_id` is what logs call it. The
    answer ends after `output_tokens_max` tokens, whatever the payload asks for, and is drawn from
    `seed` if the payload names none."""

    job_id: str
    payload: bytes
    log_id: str = ""
    output_tokens_max: int = TOKENS_MAX
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Cancel:
    job_id: str


@dataclass(frozen=True, slots=True)
class Ping:
    number: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    pass


Command = Start | Cancel | Ping | Shutdown


@dataclass(frozen=True, slots=True)
class Pong:
    number: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """No event of the cancelled job follows; those of a new job with the same id may."""

    job_id: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    message: str


Report = EngineInfo | list[EngineEvent] | Pong | Cancelled | LoadFailed


class FrameBuffer:
    """Cuts a byte stream into frames of (header, blob), keeping an unfinished one for later."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._wanted_bytes = 0

    def feed(self, data: bytes) -> list[tuple[Any, memoryview]]:
        """The frames that `data` completes. Raises WorkerProtocolError."""
        if self._pending:
            self._pending += data
            if len(self._pending) < self._wanted_bytes:
                return []
            data = bytes(self._pending)
            self._pending.clear()
        frames = []
        view = memoryview(data)
        at = 0
        while len(view) - at >= _PREFIX.size:
            header_bytes, blob_bytes = _PREFIX.unpack_from(view, at)
            if header_bytes > HEADER_BYTES_MAX or blob_bytes > BLOB_BYTES_MAX:
                raise WorkerProtocolError("a frame is larger than any frame may be")
            blob_at = at + _PREFIX.size + header_bytes
            end = blob_at + blob_bytes
            if end > len(view):
                self._wanted_bytes = end - at
                break
            frames.append((_unpack(view[at + _PREFIX.size : blob_at]), view[blob_at:end]))
            at = end
        else:
            self._wanted_bytes = _PREFIX.size
        self._pending += view[at:]
        return frames


def encode_command(command: Command) -> bytes:
    match command:
        case Start(job_id, payload, log_id, output_tokens_max, seed):
            return _frame((Kind.START, job_id, log_id, output_tokens_max, seed), payload)
        case Cancel(job_id):
            return _frame((Kind.CANCEL, job_id))
        case Ping(number):
            return _frame((Kind.PING, number))
        case Shutdown():
            return _frame((Kind.SHUTDOWN,))


def parse_command(header: Any, blob: memoryview) -> Command:
    """The worker's side: the node is trusted, so what does not fit is a bug and fails loudly."""
    match header:
        case [Kind.START, str(job_id), str(log_id), int(output_tokens_max), int(seed)]:
            return Start(job_id, bytes(blob), log_id, output_tokens_max, seed)
        case [Kind.CANCEL, str(job_id)]:
            return Cancel(job_id)
        case [Kind.PING, int(number)]:
            return Ping(number)
        case [Kind.SHUTDOWN]:
            return Shutdown()
    raise WorkerProtocolError("the node sent a command that this worker does not know")


def encode_ready(info: EngineInfo) -> bytes:
    facts = (info.task, info.slots, info.context_tokens, info.quantization, info.profile)
    return _frame((Kind.READY, *facts))


def encode_pong(number: int) -> bytes:
    return _frame((Kind.PONG, number))


def encode_cancelled(job_id: str) -> bytes:
    return _frame((Kind.CANCELLED, job_id))


def encode_load_failed(message: str) -> bytes:
    return _frame((Kind.LOAD_FAILED, message[:MESSAGE_CHARS_MAX]))


def encode_events(events: Sequence[EngineEvent]) -> Iterator[bytes]:
    """One frame for a step's events, or more where they would exceed a frame's bounds."""
    items: list[tuple[object, ...]] = []
    blobs: list[bytes] = []
    blob_bytes = header_bytes = 0
    for event in events:
        item, blob, size = _event_item(event)
        if items and (
            blob_bytes + len(blob) > BLOB_BYTES_MAX
            or header_bytes + size > HEADER_BYTES_MAX // 2
            or len(items) == EVENTS_MAX
        ):
            yield _frame((Kind.EVENTS, items), b"".join(blobs))
            items, blobs, blob_bytes, header_bytes = [], [], 0, 0
        items.append(item)
        header_bytes += size
        if blob:
            blobs.append(blob)
            blob_bytes += len(blob)
    if items:
        yield _frame((Kind.EVENTS, items), b"".join(blobs))


def _event_item(event: EngineEvent) -> tuple[tuple[object, ...], bytes, int]:
    """The event as a header item, what of it goes into the blob, and about how long the item is."""
    if isinstance(event, Produced):
        item: tuple[object, ...] = (EventKind.PRODUCED, event.job_id, event.token_ids, event.text)
        size = 128 + 5 * len(event.token_ids) + 4 * len(event.text)
        if len(event.data) <= INLINE_BYTES_MAX:
            return (*item, event.data), b"", size + len(event.data)
        return (*item, len(event.data)), event.data, size
    if isinstance(event, Started):
        digest = bytes.fromhex(event.input_digest)
        units = _plain(event.input_units)
        return (EventKind.STARTED, event.job_id, units, digest, event.prefix_tokens), b"", 192
    if isinstance(event, Finished):
        end = (event.reason, _plain(event.units), event.end_token)
        return (EventKind.FINISHED, event.job_id, *end), b"", 128
    message = event.message[:MESSAGE_CHARS_MAX]
    item = (EventKind.FAILED, event.job_id, event.code, message, _plain(event.units))
    return item, b"", 128 + 4 * len(message)


def _plain(units: Units) -> tuple[int, int, int]:
    return units.input_tokens, units.output_tokens, units.images


def parse_report(header: Any, blob: memoryview) -> Report:
    """The node's side. Raises WorkerProtocolError on anything but a well-formed report."""
    if type(header) is not list or not header or type(header[0]) is not int:
        raise WorkerProtocolError("a header is not a list that starts with its kind")
    if header[0] == Kind.EVENTS:
        if len(header) != 2 or type(header[1]) is not list:
            raise WorkerProtocolError("events are not a list")
        if not 0 < len(header[1]) <= EVENTS_MAX:
            raise WorkerProtocolError("a frame holds no events, or too many")
        return _parse_events(header[1], blob)
    if len(blob):
        raise WorkerProtocolError("a blob follows a report that has none")
    match header:
        case [Kind.PONG, int(number)]:
            return Pong(number)
        case [Kind.CANCELLED, str(job_id)]:
            return Cancelled(job_id)
        case [
            Kind.READY,
            str(task),
            int(slots),
            int(context_tokens),
            str(quantization),
            str(profile),
        ]:
            if (
                task not in set(Task)
                or not 0 < slots <= SLOTS_MAX
                or not 0 <= context_tokens <= TOKENS_MAX
                or max(len(quantization), len(profile)) > NAME_CHARS_MAX
            ):
                raise WorkerProtocolError("the worker describes an engine that cannot be")
            return EngineInfo(Task(task), slots, context_tokens, quantization, profile)
        case [Kind.LOAD_FAILED, str(message)]:
            return LoadFailed(message[:MESSAGE_CHARS_MAX])
    raise WorkerProtocolError("a report is of no known kind or shape")


def _parse_events(items: list[Any], blob: memoryview) -> list[EngineEvent]:
    """Raises WorkerProtocolError; also when the blob is not used up exactly."""
    events: list[EngineEvent] = []
    at = 0
    for item in items:
        if type(item) is not list or len(item) < 3 or type(item[0]) is not int:
            raise WorkerProtocolError("an event is not a list that starts with its kind")
        if type(item[1]) is not str or len(item[1]) > JOB_ID_CHARS_MAX:
            raise WorkerProtocolError("an event names no job")
        if item[0] == EventKind.PRODUCED:
            produced, at = _parse_produced(item, blob, at)
            events.append(produced)
        else:
            parse = _EVENT_PARSERS.get(item[0])
            if parse is None:
                raise WorkerProtocolError("an event is of no known kind")
            events.append(parse(item))
    if at != len(blob):
        raise WorkerProtocolError("a blob holds more than its events say")
    return events


def _parse_produced(item: list[Any], blob: memoryview, at: int) -> tuple[Produced, int]:
    """The event, and where in the blob the next one's data starts."""
    _, job_id, token_ids, text, data = _items(item, 5)
    if type(token_ids) is not list or len(token_ids) > TOKENS_PER_EVENT_MAX:
        raise WorkerProtocolError("token ids are not a bounded list")
    for token_id in token_ids:
        if type(token_id) is not int or not 0 <= token_id < 2**31:
            raise WorkerProtocolError("a token id is out of range")
    if type(text) is not str or len(text) > TEXT_CHARS_MAX:
        raise WorkerProtocolError("an event's text is no text or too long")
    if type(data) is int:
        end = at + data
        if not INLINE_BYTES_MAX < data <= OUTPUT_BYTES_MAX or end > len(blob):
            raise WorkerProtocolError("an event claims more of the blob than there is")
        return Produced(job_id, tuple(token_ids), text, bytes(blob[at:end])), end
    if type(data) is not bytes or len(data) > INLINE_BYTES_MAX:
        raise WorkerProtocolError("an event's data is neither bytes nor a size")
    return Produced(job_id, tuple(token_ids), text, data), at


def _parse_started(item: list[Any]) -> Started:
    _, job_id, units, digest, prefix_tokens = _items(item, 5)
    if type(digest) is not bytes or len(digest) not in (0, _DIGEST_BYTES):
        raise WorkerProtocolError("an input's digest is no sha256")
    if type(prefix_tokens) is not int or not 0 <= prefix_tokens <= TOKENS_MAX:
        raise WorkerProtocolError("a prefix is out of range")
    return Started(job_id, _parse_units(units), digest.hex(), prefix_tokens)


def _parse_finished(item: list[Any]) -> Finished:
    _, job_id, reason, units, end_token = _items(item, 5)
    if type(reason) is not str or reason not in FINISH_REASONS:
        raise WorkerProtocolError("a job finished for no known reason")
    if end_token is not None and (type(end_token) is not int or not 0 <= end_token < 2**31):
        raise WorkerProtocolError("a token id is out of range")
    return Finished(job_id, reason, _parse_units(units), end_token)


def _parse_failed(item: list[Any]) -> Failed:
    _, job_id, code, message, units = _items(item, 5)
    if type(code) is not str or code not in _CODES or type(message) is not str:
        raise WorkerProtocolError("a job failed with no known code")
    return Failed(job_id, _CODES[code], message[:MESSAGE_CHARS_MAX], _parse_units(units))


def _items(item: list[Any], count: int) -> list[Any]:
    if len(item) != count:
        raise WorkerProtocolError("an event has a wrong number of fields")
    return item


def _parse_units(plain: object) -> Units:
    if type(plain) is not list or len(plain) != 3 or not all(type(n) is int for n in plain):
        raise WorkerProtocolError("units are not three numbers")
    try:
        return Units(*plain)
    except ValueError as error:
        raise WorkerProtocolError(str(error)) from None


_CODES = {code.value: code for code in Code}
_EVENT_PARSERS: dict[int, Callable[[list[Any]], EngineEvent]] = {
    EventKind.STARTED: _parse_started,
    EventKind.FINISHED: _parse_finished,
    EventKind.FAILED: _parse_failed,
}


def _frame(header: Iterable[object], blob: bytes = b"") -> bytes:
    packed: bytes = msgpack.packb(header, use_bin_type=True)
    return _PREFIX.pack(len(packed), len(blob)) + packed + blob


def _unpack(header: memoryview) -> Any:
    try:
        # A list is at most one step's events, or one event's tokens; no report holds a map.
        return msgpack.unpackb(
            header, raw=False, max_ext_len=0, max_map_len=0, max_array_len=TOKENS_PER_EVENT_MAX
        )
    except (ValueError, msgpack.UnpackException, RecursionError):
        raise WorkerProtocolError("a header is not msgpack") from None
