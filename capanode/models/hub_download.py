"""The files of one hub model, over several connections at once, each piece where it stopped.

A worker thread per connection takes the next piece; the caller's thread shows progress, cuts lines
that hang, and stops all of them when it is interrupted. The first piece of a file is asked for
alone: only when the hub has shown that it sends ranges, the others are asked for beside it. A hub
that sends the whole file instead gets one connection for it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import httpx

from capanode.models.errors import DigestMismatchError, DownloadError
from capanode.models.hub_connection import HubConnection, HubOptions, RangeRefused, TryAgain
from capanode.models.piece_file import FilePiece, PieceFile

# A connection that breaks is resumed where it was; a piece that gets nowhere ends this soon.
FRUITLESS_TRIES_MAX = 5
_FIRST_WAIT_S = 0.5
_WAIT_MAX_S = 30.0
# A line that brings less than this in `stall_timeout_s` is as good as dead.
_SLOW_BYTES = 64 * 1024
_POLL_S = 0.1


@dataclass(slots=True)
class FileTransfer:
    """One file under way. `digest` is what it must come to."""

    name: str
    url: str
    file: PieceFile
    digest: str
    # The hub sends ranges of it: its other pieces were handed out.
    is_spread: bool = False
    # One connection brings all of it.
    is_single: bool = False


class HubDownload:
    """Brings `transfers` to full length and checks them. `sleep` and `clock` are for tests."""

    def __init__(
        self,
        transfers: Sequence[FileTransfer],
        connections: Sequence[HubConnection],
        options: HubOptions,
        *,
        deadline_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._transfers = tuple(transfers)
        self._connections = tuple(connections)
        self._options = options
        self._clock = clock
        self._deadline_s = deadline_s
        self._stop = threading.Event()
        self._sleep = sleep or self._stop.wait
        self._work = threading.Condition()
        self._queue: deque[tuple[FileTransfer, FilePiece]] = deque()
        self._unfinished = 0

    def run(self, report: Callable[[int], None]) -> None:
        """Blocks; `report` hears in this thread how many bytes are there, and may raise to stop.

        Raises DownloadError, DigestMismatchError, AccessDeniedError, SourceError, OSError.
        """
        for transfer in self._transfers:
            if missing := transfer.file.missing():
                self._queue.append((transfer, missing[0]))
        self._unfinished = len(self._queue)
        with ThreadPoolExecutor(len(self._connections)) as pool:
            futures: list[Future[None]] = []
            # From here on: Ctrl-C may come while the threads are started.
            try:
                for line in self._connections:
                    futures.append(pool.submit(self._run_worker, line))  # noqa: PERF401
                pending = set(futures)
                while pending:
                    done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    report(self._received())
                    for line in self._connections:
                        line.check(self._clock())
            finally:
                self._stop.set()
                with self._work:
                    self._work.notify_all()
                for line in self._connections:
                    line.end()
        self._check_digests()
        report(self._received())

    def _received(self) -> int:
        return sum(transfer.file.have_bytes for transfer in self._transfers)

    def _check_digests(self) -> None:
        for transfer in self._transfers:
            if transfer.file.hexdigest() != transfer.digest:
                transfer.file.discard()
                raise DigestMismatchError(
                    f"{transfer.name} is not what the hub's list says: pull again; if it stays so, "
                    "something between here and the hub changes files"
                )

    # In worker threads.

    def _run_worker(self, line: HubConnection) -> None:
        while (item := self._take()) is not None:
            try:
                self._fetch(line, *item)
            finally:
                with self._work:
                    self._unfinished -= 1
                    self._work.notify_all()

    def _take(self) -> tuple[FileTransfer, FilePiece] | None:
        """The next piece; None when there will be none."""
        with self._work:
            while not self._queue:
                if self._stop.is_set() or not self._unfinished:
                    return None
                self._work.wait(_POLL_S)
            return None if self._stop.is_set() else self._queue.popleft()

    def _spread(self, transfer: FileTransfer, first: FilePiece) -> None:
        """The hub sends ranges of this file: hand its other pieces out, ahead of other files."""
        if transfer.is_spread:
            return
        transfer.is_spread = True
        others = [piece for piece in transfer.file.missing() if piece != first]
        with self._work:
            self._queue.extendleft((transfer, piece) for piece in reversed(others))
            self._unfinished += len(others)
            self._work.notify_all()

    def _fetch(self, line: HubConnection, transfer: FileTransfer, piece: FilePiece) -> None:
        """Bring one piece (or, of a hub that sends no ranges, the file), over as many tries as it
        takes."""
        file, fruitless = transfer.file, 0
        while not (file.is_whole if transfer.is_single else file.room(piece) == 0):
            if self._stop.is_set():
                return
            self._check_deadline(transfer.name)
            before, failure = file.have(piece), None
            try:
                self._receive(line, transfer, piece)
            except (httpx.TransportError, TryAgain) as error:
                failure = error
            is_fruitful = file.have(piece) > before and not isinstance(failure, _TooSlow)
            fruitless = 0 if is_fruitful else fruitless + 1
            if fruitless >= FRUITLESS_TRIES_MAX:
                raise DownloadError(
                    f"{transfer.name} does not arrive ({failure!r}): check the network and pull "
                    "again, the download goes on where it stopped"
                )
            if failure is not None and not self._stop.is_set():
                self._sleep(wait_s(fruitless, failure))

    def _receive(self, line: HubConnection, transfer: FileTransfer, piece: FilePiece) -> None:
        """Take what one answer brings."""
        file = transfer.file
        start = piece.start + file.have(piece)
        is_last = piece.end == file.size
        # A compressed reply would make offsets and lengths mean something else.
        headers = {"accept-encoding": "identity"}
        if (start or not is_last) and not transfer.is_single:
            headers["range"] = f"bytes={start}-" + ("" if is_last else str(piece.end - 1))
        try:
            with line.opened(transfer.url, headers, what=transfer.name) as response:
                if _is_range(response, start):
                    self._spread(transfer, piece)
                elif "range" in headers or transfer.is_single:
                    self._take_all(response, transfer)
                    return
                self._take_range(response, transfer, piece)
        except RangeRefused:
            file.forget_piece(piece)
            raise

    def _take_range(
        self, response: httpx.Response, transfer: FileTransfer, piece: FilePiece
    ) -> None:
        file = transfer.file
        for chunk in self._chunks(response, transfer.name):
            room = file.room(piece)
            if len(chunk) > room and piece.end == file.size:
                file.forget_piece(piece)
                raise _too_long(transfer)
            file.write(piece, chunk[:room])
            if len(chunk) > room:
                return

    def _take_all(self, response: httpx.Response, transfer: FileTransfer) -> None:
        """The hub sends the whole file: begin it anew. No other connection works on it, unless the
        hub has sent ranges before: then another server has answered, and is asked again."""
        if transfer.is_spread:
            raise TryAgain("the hub sent a whole file instead of a range")
        transfer.is_single = True
        file = transfer.file
        file.forget()
        chunks = self._chunks(response, transfer.name)
        rest = b""
        for piece in file.pieces:
            while room := file.room(piece):
                rest = rest or next(chunks, b"")
                if not rest:
                    return
                file.write(piece, rest[:room])
                rest = rest[room:]
        if rest or next(chunks, b""):
            file.forget()
            raise _too_long(transfer)

    def _chunks(self, response: httpx.Response, name: str) -> Iterator[bytes]:
        """The body as it comes: bytes that wait for a full chunk are lost when the line breaks."""
        since_s, received = self._clock(), 0
        for chunk in response.iter_raw():
            if self._stop.is_set():
                return
            yield chunk
            received += len(chunk)
            self._check_deadline(name)
            now_s = self._clock()
            if now_s - since_s >= self._options.stall_timeout_s:
                if received < _SLOW_BYTES:
                    raise _TooSlow(f"{received} bytes in {now_s - since_s:.0f} s")
                since_s, received = now_s, 0

    def _check_deadline(self, name: str) -> None:
        if self._clock() >= self._deadline_s:
            raise DownloadError(f"{name} took too long: pull again, it goes on where it stopped")


class _TooSlow(TryAgain):
    """The line lives, but the download would take weeks."""


def wait_s(tries: int, failure: Exception) -> float:
    """How long to wait before the next try."""
    if isinstance(failure, TryAgain) and failure.retry_after_s is not None:
        return min(_WAIT_MAX_S, failure.retry_after_s)
    return min(_WAIT_MAX_S, _FIRST_WAIT_S * float(2**tries))


def _is_range(response: httpx.Response, start: int) -> bool:
    told = response.headers.get("content-range", "")
    return response.status_code == httpx.codes.PARTIAL_CONTENT and told.startswith(
        f"bytes {start}-"
    )


def _too_long(transfer: FileTransfer) -> DigestMismatchError:
    return DigestMismatchError(f"{transfer.name} is longer than the hub's list says")
