"""Connecting to a peer that has several addresses: they race, each with a short head start.

An offer may list addresses that lead nowhere, and a dial that a router drops shows it only when it
times out. So the next address does not wait for that (as in RFC 8305, "Happy Eyeballs"), and one
that failed lately starts last.
"""

from collections import OrderedDict
from collections.abc import Sequence

import trio

from protocol.ids import PeerId
from protocol.net.addresses import split_peer_id
from protocol.net.errors import AddressInvalid, ConnectFailed, NetError, NetTimeout, PeerMismatch
from protocol.net.transport import Transport

# A round trip around the Earth and its handshake take longer than this; to lose a race costs one
# more socket.
HEAD_START_S = 0.2
# Offers are made anew every minute; what failed in this one most likely fails again.
FAILED_FOR_S = 60.0
# What is remembered of strangers' addresses is bounded.
FAILURES_MAX = 4_096
# Twice what an offer may list: those of an offer and of the one before it.
RACERS_MAX = 16


class FailedDials:
    """Addresses at which a dial failed, or lost against one that began later, and when."""

    def __init__(self) -> None:
        self._failed_at: OrderedDict[str, float] = OrderedDict()

    def note(self, address: str, *, failed: bool) -> None:
        self._failed_at.pop(address, None)
        if failed:
            self._failed_at[address] = trio.current_time()
            if len(self._failed_at) > FAILURES_MAX:
                self._failed_at.popitem(last=False)

    def failed_lately(self, address: str) -> bool:
        return trio.current_time() - self._failed_at.get(address, -FAILED_FOR_S) < FAILED_FOR_S


async def connect_first(
    transport: Transport,
    peer: PeerId,
    addresses: Sequence[str],
    *,
    within_s: float,
    failures: FailedDials,
) -> None:
    """Connect to `peer` at the first address that leads there; the other dials are given up.

    Raises what the last dial to fail did: ConnectFailed, AddressInvalid, PeerMismatch, NetTimeout.
    """
    racers = list(dict.fromkeys(addresses))[:RACERS_MAX]
    # Sorting is stable: apart from failures, the node's own order counts.
    racers.sort(key=failures.failed_lately)
    failure: NetError = ConnectFailed(f"{peer} is not connected and has no address")
    is_there = False

    async def dial(number: int, ended: trio.Event) -> None:
        nonlocal failure, is_there
        address = racers[number]
        try:
            await _connect(transport, peer, address, within_s)
        except (ConnectFailed, AddressInvalid, NetTimeout, PeerMismatch) as error:
            failure = error
            failures.note(address, failed=True)
            ended.set()
        else:
            failures.note(address, failed=False)
            for slower in racers[:number]:
                failures.note(slower, failed=True)
            is_there = True
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for number in range(len(racers)):
            ended = trio.Event()
            nursery.start_soon(dial, number, ended)
            with trio.move_on_after(HEAD_START_S):
                await ended.wait()
    if not is_there:
        raise failure


async def _connect(transport: Transport, peer: PeerId, address: str, within_s: float) -> None:
    _, named = split_peer_id(address)
    if named != peer:
        raise PeerMismatch(f"{address} leads to {named}, not to {peer}")
    await transport.connect(address, timeout_s=within_s)
