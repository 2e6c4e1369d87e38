"""What a worker tells its node.

All events of one engine step travel in one frame. The worker is not trusted: the node checks every
size, type and number that it reads, and ends a worker that gets one wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from enum import IntEnum
from typing import Any

from capanode.device_problems import DeviceFailure, DeviceProblem
from capanode.engines.base import Completed, EngineEvent, EngineInfo, Failed, Produced, Started
from capanode.worker.frames import (
    BLOB_BYTES_MAX,
    HEADER_BYTES_MAX,
    ITEMS_MAX,
    JOB_ID_CHARS_MAX,
    Kind,
    WorkerProtocolError,
    make_frame,
)
from protocol.chat_formats import CHAT_FORMATS
from protocol.codec import decode, encode
from protocol.errors import Code, RemoteProtocolError
from protocol.features import Feature
from protocol.limits import (
    DIMENSIONS_MAX,
    KIB,
    MESSAGE_CHARS_MAX,
    NAME_CHARS_MAX,
    OFFER_BYTES_MAX,
    OUTPUT_BYTES_MAX,
    STOP_STRINGS_MAX,
    TOKENS_MAX,
)
from protocol.messages import Task
from protocol.offers import SLOTS_MAX
from protocol.pricing import Units
from protocol.tensors import ModelSignature

# Outputs up to here are cheaper inside the header than as part of the blob.
INLINE_BYTES_MAX = 4 * KIB

# Above any step's: a started, a produced and a finished for each of the 256 jobs that slots allow.
EVENTS_MAX = 1_024
# A step yields one token a job; an engine that buffers for a stop string yields a few at once.
TOKENS_PER_EVENT_MAX = ITEMS_MAX
TEXT_CHARS_MAX = 64 * KIB
_DIGEST_BYTES = 32
FINISH_REASONS = frozenset({"stop", "length", "complete"})


class EventKind(IntEnum):
    STARTED = 0
    PRODUCED = 1
    FINISHED = 2
    FAILED = 3


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


Report = EngineInfo | list[EngineEvent] | Pong | Cancelled | LoadFailed | DeviceFailure


def encode_ready(info: EngineInfo) -> bytes:
    facts = (info.task, info.slots, info.context_tokens, info.quantization, info.profile)
    signature = encode(info.signature) if info.signature is not None else b""
    chat = (info.features, info.chat_format)
    return make_frame((Kind.READY, *facts, *chat, signature, info.dimensions))


def encode_pong(number: int) -> bytes:
    return make_frame((Kind.PONG, number))


def encode_cancelled(job_id: str) -> bytes:
    return make_frame((Kind.CANCELLED, job_id))


def encode_load_failed(message: str) -> bytes:
    return make_frame((Kind.LOAD_FAILED, message[:MESSAGE_CHARS_MAX]))


def encode_device_failed(failure: DeviceFailure) -> bytes:
    return make_frame((Kind.DEVICE_FAILED, failure.problem, failure.reason[:MESSAGE_CHARS_MAX]))


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
            yield make_frame((Kind.EVENTS, items), b"".join(blobs))
            items, blobs, blob_bytes, header_bytes = [], [], 0, 0
        items.append(item)
        header_bytes += size
        if blob:
            blobs.append(blob)
            blob_bytes += len(blob)
    if items:
        yield make_frame((Kind.EVENTS, items), b"".join(blobs))


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
    if isinstance(event, Completed):
        end = (event.reason, _plain(event.units), event.end_token, event.end_stop)
        return (EventKind.FINISHED, event.job_id, *end), b"", 128
    message = event.message[:MESSAGE_CHARS_MAX]
    item = (EventKind.FAILED, event.job_id, event.code, message, _plain(event.units))
    return item, b"", 128 + 4 * len(message)


def _plain(units: Units) -> tuple[int, ...]:
    return astuple(units)


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
            list(features),
            str(chat_format),
            bytes(signature),
            int(dimensions),
        ]:
            if (
                task not in set(Task)
                or not 0 < slots <= SLOTS_MAX
                or not 0 <= context_tokens <= TOKENS_MAX
                or max(len(quantization), len(profile)) > NAME_CHARS_MAX
                or not set(map(type, features)) <= {str}
                or not set(features) <= set(Feature)
                or not 0 <= dimensions <= DIMENSIONS_MAX
                or (chat_format and chat_format not in CHAT_FORMATS)
            ):
                raise WorkerProtocolError("the worker describes an engine that cannot be")
            return EngineInfo(
                Task(task),
                slots,
                context_tokens,
                quantization,
                profile,
                tuple(features),
                chat_format,
                _parse_signature(signature),
                dimensions,
            )
        case [Kind.LOAD_FAILED, str(message)]:
            return LoadFailed(message[:MESSAGE_CHARS_MAX])
        case [Kind.DEVICE_FAILED, str(problem), str(reason)] if problem in set(DeviceProblem):
            return DeviceFailure(DeviceProblem(problem), reason[:MESSAGE_CHARS_MAX])
    raise WorkerProtocolError("a report is of no known kind or shape")


def _parse_signature(data: bytes) -> ModelSignature | None:
    """Raises WorkerProtocolError."""
    if len(data) > OFFER_BYTES_MAX:
        raise WorkerProtocolError("a model's signature is too long")
    try:
        return decode(ModelSignature, data) if data else None
    except RemoteProtocolError as error:
        raise WorkerProtocolError(str(error)) from None


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


def _parse_finished(item: list[Any]) -> Completed:
    _, job_id, reason, units, end_token, end_stop = _items(item, 6)
    if type(reason) is not str or reason not in FINISH_REASONS:
        raise WorkerProtocolError("a job finished for no known reason")
    if end_token is not None and (type(end_token) is not int or not 0 <= end_token < 2**31):
        raise WorkerProtocolError("a token id is out of range")
    if end_stop is not None and (type(end_stop) is not int or not 0 <= end_stop < STOP_STRINGS_MAX):
        raise WorkerProtocolError("a stop string's index is out of range")
    return Completed(job_id, reason, _parse_units(units), end_token, end_stop)


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
    if type(plain) is not list or len(plain) != len(fields(Units)):
        raise WorkerProtocolError("units are not the numbers that they should be")
    if not all(type(number) is int for number in plain):
        raise WorkerProtocolError("units are not numbers")
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
