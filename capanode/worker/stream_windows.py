"""The windows of streams: the last rows that a model was asked about, from one job to the next.

Lives in the worker, beside the engine, so that the node's parent reads no payload. The engine does
not know of it: a job that goes on from kept rows becomes one that brings them as its context. What
is kept belongs to one client, is bounded, and is gone with the process; a job whose rows are not
here is refused, and its client sends them.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from capanode.engines.base import Completed, EngineEvent, EngineInfo, Failed
from protocol.errors import Code, RemoteProtocolError
from protocol.features import Feature
from protocol.limits import MIB, STREAM_WINDOW_BYTES_MAX
from protocol.tensor_rows import RowWindow
from protocol.tensors import TensorInput

# Of one model, all clients together. A window of a few sensors has some KiB.
KEPT_BYTES_MAX = 32 * MIB
STREAMS_MAX = 4_096
# One client's streams at a time: gateways have a key for each of their users.
STREAMS_PER_CLIENT_MAX = 256
# A stream that has nothing to ask for so long is over, or can send its window again.
IDLE_MAX_S = 600.0

_Key = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class _Kept:
    """The rows before `next_row`, and when the stream was last heard of."""

    window: RowWindow
    next_row: int
    used_at_s: float


class StreamWindows:
    """Of one model. `rows_max` are the rows that are kept of a stream; with 0 nothing is."""

    def __init__(self, rows_max: int, monotonic_s: Callable[[], float]) -> None:
        self._rows_max = rows_max
        self._monotonic_s = monotonic_s
        # The stream longest unheard of comes first.
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._streams: Counter[str] = Counter()
        self._bytes = 0
        # What will be kept once these jobs are answered.
        self._running: dict[str, tuple[_Key, _Kept]] = {}

    @classmethod
    def of_engine(cls, info: EngineInfo, monotonic_s: Callable[[], float]) -> "StreamWindows":
        window_rows = info.signature.window_rows if info.signature is not None else 0
        return cls(max(window_rows - 1, 0), monotonic_s)

    @property
    def features(self) -> tuple[str, ...]:
        """What an offer says of it."""
        return (Feature.STREAM_WINDOWS,) if self._rows_max else ()

    def enter(self, job_id: str, client: str, job_input: TensorInput) -> TensorInput:
        """The input as the engine takes it. `client` is a word for who asks, the same for all of
        its jobs. Raises RemoteProtocolError (STATE_MISSING, INVALID_INPUT)."""
        place = job_input.place
        if place is None:
            return job_input
        self._forget_idle()
        key = (client, place.stream_id)
        window = RowWindow(self._rows_max)
        if place.is_continued:
            kept = self._kept.get(key)
            if kept is None or kept.next_row != place.first_row:
                raise RemoteProtocolError(
                    "the rows before these are not here: send them", code=Code.STATE_MISSING
                )
            window = kept.window
        if not window.fits(job_input.inputs):
            raise RemoteProtocolError(
                "the inputs have another form than those before them", code=Code.INVALID_INPUT
            )
        whole = replace(
            job_input,
            inputs=window.before(job_input.inputs),
            context_rows=job_input.context_rows + window.rows,
            place=None,
        )
        answered_rows = job_input.inputs[0].rows - job_input.context_rows
        following = _Kept(
            window.after(job_input.inputs), place.first_row + answered_rows, self._monotonic_s()
        )
        if self._rows_max and following.window.size <= STREAM_WINDOW_BYTES_MAX:
            self._running[job_id] = (key, following)
        return whole

    def note_events(self, events: Sequence[EngineEvent]) -> None:
        """A job that was answered leaves its rows."""
        if not self._running:
            return
        for event in events:
            if isinstance(event, Completed):
                found = self._running.pop(event.job_id, None)
                if found is not None:
                    self._keep(*found)
            elif isinstance(event, Failed):
                self.leave(event.job_id)

    def leave(self, job_id: str) -> None:
        """The job is not answered: what was kept before it stays."""
        self._running.pop(job_id, None)

    def _keep(self, key: _Key, kept: _Kept) -> None:
        self._forget(key)
        client, _ = key
        if self._streams[client] >= STREAMS_PER_CLIENT_MAX:
            self._forget(next(known for known in self._kept if known[0] == client))
        self._kept[key] = kept
        self._streams[client] += 1
        self._bytes += kept.window.size
        while self._bytes > KEPT_BYTES_MAX or len(self._kept) > STREAMS_MAX:
            self._forget(next(iter(self._kept)))

    def _forget_idle(self) -> None:
        heard_by_s = self._monotonic_s() - IDLE_MAX_S
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if kept.used_at_s > heard_by_s:
                return
            self._forget(key)

    def _forget(self, key: _Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is None:
            return
        client, _ = key
        self._bytes -= kept.window.size
        self._streams[client] -= 1
        if not self._streams[client]:
            del self._streams[client]
