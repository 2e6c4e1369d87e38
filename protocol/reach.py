"""Whether a node can be dialled: what it asks its coordinator, and what that saw.

The bodies of the control method `dial_back`. A coordinator dials only where the asker has shown to
be, or where the asking cost more bytes than the dial sends: it must not be a way to make it dial
others.
"""

from dataclasses import dataclass

from protocol.fields import check
from protocol.limits import ADDRESS_CHARS_MAX, KIB, NAME_CHARS_MAX, OFFER_ADDRESSES_MAX
from protocol.vocabulary import OpenVocabulary

# What each address costs that is not where the asker's connection comes from: many times what a
# dial and a handshake send there (as in libp2p's AutoNAT v2).
PADDING_BYTES = 16 * KIB
# A dial that takes longer is no use to a buyer.
TOOK_MS_MAX = 60_000


class Dialled(OpenVocabulary):
    """What came of a dial."""

    REACHED = "reached"
    REFUSED = "refused"  # nothing listens there, or what does is no node
    TIMED_OUT = "timed_out"
    OTHER_PEER = "other_peer"
    FORBIDDEN = "forbidden"  # a place that this coordinator dials for no one
    UNPROVEN = "unproven"  # it was not dialled: neither where the asker is, nor paid for


@dataclass(frozen=True, slots=True)
class DialBackAsk:
    """Dial these addresses of mine. `padding` is thrown away: PADDING_BYTES for each address that
    is elsewhere than this connection comes from."""

    addresses: tuple[str, ...]
    padding: bytes = b""

    def __post_init__(self) -> None:
        check(len(self.addresses) <= OFFER_ADDRESSES_MAX, "too many addresses")
        check(all(len(a) <= ADDRESS_CHARS_MAX for a in self.addresses), "an address is too long")


@dataclass(frozen=True, slots=True)
class DialResult:
    """One address, and how long its dial took."""

    address: str
    outcome: Dialled
    took_ms: int = 0

    def __post_init__(self) -> None:
        check(len(self.address) <= ADDRESS_CHARS_MAX, "an address is too long")
        check(0 <= self.took_ms <= TOOK_MS_MAX, "a dial took implausibly long")


@dataclass(frozen=True, slots=True)
class DialBackReply:
    """`observed_host` is where the asker's connection comes from, empty if that says nothing (it
    comes through a relay). `failed_buyers` have lately said that they could not dial the node."""

    observed_host: str
    results: tuple[DialResult, ...]
    failed_buyers: int = 0

    def __post_init__(self) -> None:
        check(len(self.observed_host) <= NAME_CHARS_MAX, "the host is too long")
        check(len(self.results) <= OFFER_ADDRESSES_MAX, "too many results")
        check(self.failed_buyers >= 0, "the number of buyers is negative")
