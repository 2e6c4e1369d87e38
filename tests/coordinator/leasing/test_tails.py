"""Where client and node differ, the one that differs with many others is doubted."""

from coordinator.leasing.tails import PARTNERS_MAX, SUSPECT_MIN, Tails
from protocol.ids import PeerId

NODE, OTHER = PeerId("node"), PeerId("other node")
CLIENTS = [PeerId(f"client {number}") for number in range(SUSPECT_MIN)]
NODES = [PeerId(f"node {number}") for number in range(SUSPECT_MIN)]


Pairs = list[tuple[PeerId, PeerId]]


def make_tails(*, agreed: Pairs, contested: Pairs) -> Tails:
    tails = Tails()
    for pairs, is_agreed in ((agreed, True), (contested, False)):
        for node, client in pairs:
            tails.note(node, client, is_agreed=is_agreed)
    return tails


def test_a_node_that_differs_with_several_paying_clients_is_suspect_and_they_are_not() -> None:
    tails = make_tails(
        agreed=[(OTHER, client) for client in CLIENTS],
        contested=[(NODE, client) for client in CLIENTS],
    )
    assert tails.is_suspect(NODE)
    assert not any(map(tails.is_suspect, [OTHER, *CLIENTS]))


def test_a_client_that_differs_with_several_nodes_is_suspect_and_they_are_not() -> None:
    client, honest = CLIENTS[0], CLIENTS[1]
    tails = make_tails(
        agreed=[(node, honest) for node in NODES], contested=[(node, client) for node in NODES]
    )
    assert tails.is_suspect(client)
    assert not any(map(tails.is_suspect, [honest, *NODES]))


def test_one_counterparty_makes_no_party_suspect_however_often() -> None:
    pairs = [(NODE, CLIENTS[0])] * 50
    tails = make_tails(agreed=[(OTHER, CLIENTS[0])], contested=pairs)
    assert not tails.is_suspect(NODE)
    assert not tails.is_suspect(CLIENTS[0])


def test_fresh_identities_are_no_witnesses() -> None:
    """They cost nothing, and have agreed with no other party."""
    tails = make_tails(agreed=[], contested=[(NODE, client) for client in CLIENTS])
    assert not tails.is_suspect(NODE)


def test_clients_that_differ_with_everybody_are_no_witnesses() -> None:
    """Each of them has paid somebody once, and signs for nothing since."""
    others = [PeerId(f"victim {number}") for number in range(SUSPECT_MIN)]
    tails = make_tails(
        agreed=[(OTHER, client) for client in CLIENTS],
        contested=[(node, client) for client in CLIENTS for node in (*others, NODE)],
    )
    assert not tails.is_suspect(NODE)
    assert not tails.is_suspect(OTHER)


def test_few_that_differ_among_many_that_agree_are_mishaps() -> None:
    many = [PeerId(f"customer {number}") for number in range(PARTNERS_MAX - SUSPECT_MIN)]
    pairs = [(OTHER, client) for client in CLIENTS] + [(NODE, client) for client in many]
    tails = make_tails(agreed=pairs, contested=[(NODE, client) for client in CLIENTS])
    assert not tails.is_suspect(NODE)


def test_nobody_vouches_for_itself_and_the_oldest_party_is_forgotten() -> None:
    tails = Tails(parties_max=4)
    tails.note(NODE, NODE, is_agreed=False)
    assert len(tails) == 0
    for client in CLIENTS:
        tails.note(NODE, client, is_agreed=True)
        tails.note(OTHER, client, is_agreed=True)
    assert len(tails) == 4
