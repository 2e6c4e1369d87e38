"""Every attack, in the order in which they are made."""

from collections.abc import Sequence

from sim.siege import (
    api_keys,
    connections,
    flood,
    foreign,
    http_framing,
    money,
    node_work,
    privacy,
    refusals,
    restarts,
    sandbox,
    standing,
)
from sim.siege.attack import Attack

ATTACKS: tuple[Attack, ...] = (
    *money.ATTACKS,
    *standing.ATTACKS,
    *api_keys.ATTACKS,
    *foreign.ATTACKS,
    *sandbox.ATTACKS,
    *connections.ATTACKS,
    *flood.ATTACKS,
    *http_framing.ATTACKS,
    *node_work.ATTACKS,
    *privacy.ATTACKS,
    *refusals.ATTACKS,
    *restarts.ATTACKS,
)


def attacks_of(name: str | None) -> Sequence[Attack]:
    """The attacks with this name, or of this row of the list (`A1`, or `A` for a whole group)."""
    if name is None:
        return ATTACKS
    wanted = name.upper()
    named = [attack for attack in ATTACKS if attack.name == name]
    return named or [
        attack
        for attack in ATTACKS
        if attack.row == wanted or (len(wanted) == 1 and attack.row.startswith(wanted))
    ]
