"""Which of two parties to believe where they differ: by how many others each differs with.

What both sides signed is certain. Beyond that it is the node's word against the client's silence,
or against a smaller count, and one such end says nothing about who is wrong. Over distinct
counterparties it does: a node that bills what it did not send differs with many clients, a client
that does not sign for what it got with many nodes.

A counterparty is a witness only if it has agreed with others for money, and does not differ with
many itself: so neither fresh identities nor the worst clients decide about a node.
"""

from collections import OrderedDict

from protocol.ids import PeerId

# The latest end with each of so many counterparties is remembered; about 200 bytes each.
PARTNERS_MAX = 16
PARTIES_MAX = 20_000
# So many witnesses, and more than this share of all counterparties, make a party suspect.
SUSPECT_MIN = 3
SUSPECT_SHARE = 0.25

_Partners = OrderedDict[PeerId, bool]
_NONE = _Partners()


class Tails:
    """How leases that cost something ended, by pairs of node and client."""

    def __init__(self, *, parties_max: int = PARTIES_MAX) -> None:
        self._parties_max = parties_max
        # Whether the last end with each counterparty was agreed on; the oldest first.
        self._partners: OrderedDict[PeerId, _Partners] = OrderedDict()

    def __len__(self) -> int:
        return len(self._partners)

    def note(self, node: PeerId, client: PeerId, *, is_agreed: bool) -> None:
        """A lease between these two ended, and cost something."""
        if node == client:
            return
        self._keep(node, client, is_agreed)
        self._keep(client, node, is_agreed)

    def is_suspect(self, party: PeerId) -> bool:
        """Whether the party, and not its counterparties, is the one to doubt."""
        partners = self._partners.get(party, _NONE)
        witnesses = sum(
            self._is_witness(partner, party)
            for partner, is_agreed in partners.items()
            if not is_agreed
        )
        return _are_many(witnesses, len(partners))

    def _is_witness(self, partner: PeerId, against: PeerId) -> bool:
        partners = self._partners.get(partner, _NONE)
        others = [agreed for other, agreed in partners.items() if other != against]
        return any(others) and not _are_many(others.count(False), len(others))

    def _keep(self, party: PeerId, partner: PeerId, is_agreed: bool) -> None:
        partners = self._partners.setdefault(party, OrderedDict())
        self._partners.move_to_end(party)
        partners[partner] = is_agreed
        partners.move_to_end(partner)
        if len(partners) > PARTNERS_MAX:
            partners.popitem(last=False)
        if len(self._partners) > self._parties_max:
            self._partners.popitem(last=False)


def _are_many(contested: int, partners: int) -> bool:
    return contested >= SUSPECT_MIN and contested > SUSPECT_SHARE * partners
