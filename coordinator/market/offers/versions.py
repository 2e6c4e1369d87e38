"""Which of a node's offers counts, when old ones arrive late and keys get copied.

A node that restarts has a later incarnation and outranks its former self; within one incarnation
the sequence only grows. An older incarnation never wins: that is how a ghost would get jobs. But if
it still signs *new* offers after the younger one has started, then both run: the key was copied.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto

from protocol.ids import Digest, PeerId
from protocol.limits import CLOCK_SKEW_MAX_MS
from protocol.offers import NodeOffer


class Succession(Enum):
    """How an offer relates to the best one known of the same node."""

    NEWER = auto()
    SAME = auto()
    OLDER = auto()
    CONFLICT = auto()


@dataclass(frozen=True, slots=True)
class OfferVersion:
    """The best offer known of one node. After `forget_at_ms` every older one has expired, too."""

    incarnation_ms: int
    sequence: int
    digest: Digest
    forget_at_ms: int


def judge(known: OfferVersion | None, offer: NodeOffer, digest: Digest) -> Succession:
    """Compare `offer` with what is known of its node.

    The one who restarts a node on the same machine reads the same clock, and for a key on two
    machines we forgive the usual skew: so an older incarnation is caught red-handed only by an
    offer that it signed clearly after the younger one began.
    """
    if known is None or offer.incarnation_ms > known.incarnation_ms:
        return Succession.NEWER
    if offer.incarnation_ms < known.incarnation_ms:
        lives_on = offer.issued_at_ms > known.incarnation_ms + CLOCK_SKEW_MAX_MS
        return Succession.CONFLICT if lives_on else Succession.OLDER
    if offer.sequence != known.sequence:
        is_newer = offer.sequence > known.sequence
        return Succession.NEWER if is_newer else Succession.OLDER
    return Succession.SAME if digest == known.digest else Succession.CONFLICT


class OfferVersions:
    """The best known version of every node, also of those whose last offer has just expired."""

    def __init__(self) -> None:
        self._known: OrderedDict[PeerId, OfferVersion] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, node: PeerId) -> OfferVersion | None:
        return self._known.get(node)

    def put(self, node: PeerId, version: OfferVersion) -> None:
        self._known[node] = version
        self._known.move_to_end(node)

    def drop(self, node: PeerId) -> None:
        self._known.pop(node, None)

    def forget(self, now_ms: int) -> None:
        """Drop what no offer can contradict any more. Entries are in order of arrival and live
        about equally long, so looking at the oldest is enough; some stay a little longer."""
        while self._known:
            node = next(iter(self._known))
            if self._known[node].forget_at_ms > now_ms:
                return
            del self._known[node]
