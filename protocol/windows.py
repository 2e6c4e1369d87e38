"""Windows: how a client signs for a text while it streams, at the price of one hash a signature.

Each party commits to the end of a hash chain (its anchor) in a signed message, and reveals one link
more per window of output: link k shows that its owner said "k windows", because only the owner knew
it. One link proves all links before it, so that the last one is all the evidence that is kept.

The client has two chains. The output chain's first link says that output has begun, and link 1 + k
that k windows have arrived. The input chain says, in at most `INPUT_STEPS_MAX` steps, as how many
tokens it accepts the input. What each link is worth in money is decided in
`coordinator.settling.verdicts`.

Source: PayWord (Rivest and Shamir, "PayWord and MicroMint", 1996).
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.errors import Code, RemoteProtocolError
from protocol.limits import INPUT_STEPS_MAX, LINKS_MAX
from protocol.pricing import Units

# The sandboxed worker and the command lines read messages and hold no keys: they load no
# cryptography.
if TYPE_CHECKING:
    from protocol.keys import SigningKey

LINK_BYTES = 32

_COUNTERSIGN = struct.Struct(">I32sI32s")
_PROGRESS = struct.Struct(">I32s")


def _divide_up(amount: int, divisor: int) -> int:
    return -(-amount // divisor)


@dataclass(frozen=True, slots=True)
class WindowTerms:
    """What follows from a lease: how many tokens a window and an input step have, and how many
    links the two chains."""

    window_tokens: int
    output_links: int
    input_step_tokens: int
    input_links: int

    @classmethod
    def of(cls, units_max: Units, window_tokens: int) -> "WindowTerms":
        """A very long answer has larger windows: a chain has at most `LINKS_MAX` links."""
        window = max(window_tokens, _divide_up(units_max.output_tokens, LINKS_MAX - 1))
        step = max(window, _divide_up(units_max.input_tokens, INPUT_STEPS_MAX))
        return cls(
            window_tokens=window,
            output_links=1 + _divide_up(units_max.output_tokens, window),
            input_step_tokens=step,
            input_links=_divide_up(units_max.input_tokens, step),
        )

    def output_index(self, output_tokens: int) -> int:
        """The link that is due when so many output tokens are here."""
        return 1 + output_tokens // self.window_tokens

    def input_index(self, input_tokens: int) -> int:
        return _divide_up(input_tokens, self.input_step_tokens)

    def signed_output(self, index: int) -> int:
        """The output tokens that a link stands for."""
        return max(index - 1, 0) * self.window_tokens

    def signed_input(self, input_index: int) -> tuple[int, int]:
        """The least and the most input tokens that an input link stands for."""
        most = input_index * self.input_step_tokens
        return max(most - self.input_step_tokens + 1, 0), most


class HashChain:
    """The owner's side: `link(0)` is the anchor, each further link is known to the owner alone.

    It is made when its first link is asked for: a long one takes milliseconds and a quarter of a
    megabyte, which a lease must not cost before it is known who signed it.
    """

    def __init__(self, secret: bytes, length: int) -> None:
        self._secret = secret
        self._length = length
        self._links: list[bytes] = []

    @property
    def anchor(self) -> bytes:
        return self.link(0)

    def link(self, index: int) -> bytes:
        if not self._links:
            self._make()
        return self._links[index]

    def _make(self) -> None:
        sha256, link = hashlib.sha256, self._secret
        links = [link]
        for _ in range(self._length):
            link = sha256(link).digest()
            links.append(link)
        links.reverse()
        self._links = links


class ChainReader:
    """The other side: takes links in rising order, and keeps the last one as evidence."""

    def __init__(self, anchor: bytes, length: int) -> None:
        self._length = length
        self.index = 0
        self.link = anchor

    def advance(self, index: int, link: bytes) -> None:
        """Raises RemoteProtocolError: BAD_SIGNATURE for a link of another chain, MALFORMED for an
        index that goes back or beyond the chain."""
        if not self.index <= index <= self._length or len(link) != LINK_BYTES:
            raise RemoteProtocolError(
                f"link {index} is not between {self.index} and {self._length}", code=Code.MALFORMED
            )
        sha256, hashed = hashlib.sha256, link
        for _ in range(index - self.index):
            hashed = sha256(hashed).digest()
        if hashed != self.link:
            raise RemoteProtocolError(
                f"link {index} does not belong to the signed anchor", code=Code.BAD_SIGNATURE
            )
        self.index, self.link = index, link


@dataclass(frozen=True, slots=True)
class Countersigned:
    """The client's last links, as JOB_COUNTERSIGN carries them and a receipt repeats them."""

    input_index: int
    input_link: bytes
    index: int
    link: bytes

    def __post_init__(self) -> None:
        if not (0 <= self.input_index <= INPUT_STEPS_MAX and 0 <= self.index <= LINKS_MAX):
            raise ValueError("a link's index is out of range")
        if not len(self.input_link) == len(self.link) == LINK_BYTES:
            raise ValueError(f"a link has {LINK_BYTES} bytes")


# Frames of windows come as often as windows are small: their bodies are packed and parsed without
# an object for each.


def parse_countersign(body: bytes) -> tuple[int, bytes, int, bytes]:
    """What JOB_COUNTERSIGN carries, the fields of `Countersigned`: their readers check the range of
    the indexes. Raises RemoteProtocolError (MALFORMED)."""
    if len(body) != _COUNTERSIGN.size:
        raise RemoteProtocolError(
            f"a countersignature has {_COUNTERSIGN.size} bytes", code=Code.MALFORMED
        )
    input_index, input_link, index, link = _COUNTERSIGN.unpack(body)
    return input_index, input_link, index, link


def pack_progress(index: int, link: bytes) -> bytes:
    """The body of JOB_PROGRESS: its node has sent the output of link `index`."""
    return _PROGRESS.pack(index, link)


def parse_progress(body: bytes) -> tuple[int, bytes]:
    """Raises RemoteProtocolError (MALFORMED)."""
    if len(body) != _PROGRESS.size:
        raise RemoteProtocolError(f"a progress has {_PROGRESS.size} bytes", code=Code.MALFORMED)
    index, link = _PROGRESS.unpack(body)
    return index, link


class ClientChains:
    """The client's two chains for one lease. Derived from its key, so that a client that was
    restarted, and a replayed simulation, have the same."""

    def __init__(self, key: "SigningKey", lease_digest: str, terms: WindowTerms) -> None:
        self._terms = terms
        self._input = HashChain(key.derive_secret(f"input chain/{lease_digest}"), terms.input_links)
        self._output = HashChain(
            key.derive_secret(f"output chain/{lease_digest}"), terms.output_links
        )

    @property
    def input_anchor(self) -> bytes:
        return self._input.anchor

    @property
    def output_anchor(self) -> bytes:
        return self._output.anchor

    def countersign(self, input_tokens: int, output_tokens: int) -> bytes:
        """The body of JOB_COUNTERSIGN that stands for these units; some output has to be there."""
        input_index = self._terms.input_index(input_tokens)
        index = self._terms.output_index(output_tokens)
        return _COUNTERSIGN.pack(
            input_index, self._input.link(input_index), index, self._output.link(index)
        )


def node_chain(key: "SigningKey", lease_digest: str, terms: WindowTerms) -> HashChain:
    """The chain by which a node signs its progress."""
    return HashChain(key.derive_secret(f"progress chain/{lease_digest}"), terms.output_links)
