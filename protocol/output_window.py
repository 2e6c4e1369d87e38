"""How far a node may stream ahead of its client's signature.

A node sends at most two windows that lack a countersignature: one on its way, one being signed.
What is produced beyond that is held back here, and sent as the client signs. No I/O and no clock:
how long a node waits for a signature is its own decision.
"""

from collections import deque
from collections.abc import Iterator

from protocol.countersigning import JobOpening, readers_of
from protocol.errors import Code, RemoteProtocolError
from protocol.payload import Chunk
from protocol.windows import (
    Countersigned,
    HashChain,
    WindowTerms,
    pack_progress,
    parse_countersign,
)

# Windows that may be under way without a countersignature.
UNSIGNED_WINDOWS_MAX = 2


class OutputWindow:
    """The output of one job whose client opened it with `opening`. An answer in one piece has no
    windows: nothing of it is held back."""

    def __init__(
        self, terms: WindowTerms, opening: JobOpening, chain: HashChain, *, is_stream: bool
    ) -> None:
        self._terms = terms
        self._input, self._output = readers_of(opening, terms)
        self._chain = chain
        self._is_stream = is_stream
        self._input_index = 0
        self._held: deque[Chunk] = deque()
        self.sent_tokens = 0
        # These change once a window, and are compared once a token.
        self._may_send = UNSIGNED_WINDOWS_MAX * terms.window_tokens
        self._progress_at = 1
        # What is sent up to here needs no other look: no more than this is allowed, nothing is held
        # back, and no progress is due.
        self._clear_until = 0

    @property
    def is_blocked(self) -> bool:
        """Output waits for the client's signature."""
        return bool(self._held)

    @property
    def countersigned(self) -> Countersigned | None:
        """The client's last links, for the receipt; None before the first."""
        if not self._output.index:
            return None
        return Countersigned(
            self._input.index, self._input.link, self._output.index, self._output.link
        )

    def accept_input(self, input_tokens: int) -> None:
        """What the client has to sign for with its first link."""
        self._input_index = self._terms.input_index(input_tokens)

    def pass_on(self, tokens: int) -> bool:
        """Whether output of so many tokens may be sent at once, and nothing else is due then: the
        common case, in one comparison. If not, `push` it."""
        sent_tokens = self.sent_tokens + tokens
        if sent_tokens > self._clear_until:
            return False
        self.sent_tokens = sent_tokens
        return True

    def push(self, chunk: Chunk) -> list[Chunk]:
        """Take output that was produced; returns what may be sent now, before `progress_due`."""
        tokens = len(chunk.token_ids)
        fits = tokens <= self._terms.window_tokens and self.sent_tokens + tokens <= self._may_send
        if not self._is_stream or (fits and not self._held):
            self.sent_tokens += tokens
            return [chunk]
        self._held.extend(_pieces(chunk, self._terms.window_tokens))
        return self._release()

    def take(self, body: bytes) -> list[Chunk]:
        """Take a JOB_COUNTERSIGN; returns what may be sent now, before `progress_due`. Raises
        RemoteProtocolError: UNSIGNED if it is for less input than was counted, else as
        `ChainReader.advance`."""
        input_index, input_link, index, link = parse_countersign(body)
        if index <= self._output.index:
            raise RemoteProtocolError("a link was sent twice", code=Code.UNEXPECTED_FRAME)
        if input_index != self._input_index:
            raise RemoteProtocolError(
                "the client does not sign for the input that was counted", code=Code.UNSIGNED
            )
        self._input.advance(input_index, input_link)
        self._output.advance(index, link)
        signed = self._terms.signed_output(index)
        self._may_send = signed + UNSIGNED_WINDOWS_MAX * self._terms.window_tokens
        return self._release()

    def progress_due(self) -> bytes | None:
        """The body of JOB_PROGRESS for what was sent, if it has not been told yet."""
        if not self._is_stream:
            return None
        progress = None
        if self.sent_tokens >= self._progress_at:
            index = self._terms.output_index(self.sent_tokens)
            self._progress_at = self._terms.signed_output(index + 1)
            progress = pack_progress(index, self._chain.link(index))
        self._clear_until = 0 if self._held else min(self._may_send, self._progress_at - 1)
        return progress

    def _release(self) -> list[Chunk]:
        released = []
        while self._held and self.sent_tokens + len(self._held[0].token_ids) <= self._may_send:
            chunk = self._held.popleft()
            self.sent_tokens += len(chunk.token_ids)
            released.append(chunk)
        return released


def _pieces(chunk: Chunk, tokens_max: int) -> Iterator[Chunk]:
    """A chunk in pieces of at most so many tokens; its text comes with the last of them."""
    token_ids = chunk.token_ids
    while len(token_ids) > tokens_max:
        yield Chunk(token_ids[:tokens_max])
        token_ids = token_ids[tokens_max:]
    yield Chunk(token_ids, chunk.text, chunk.data)
