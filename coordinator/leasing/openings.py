"""Leases that no node has reported as opened: how many a client may have, and when they are over.

A lease takes a seat and holds money before its client has shown that it means to use it. So
strangers get few such leases at a time (`clients`), one yields its seat to those who wait, and one
that can be opened no more gives its seat back, and its money if its node is here to tell.

Leases that a client takes ahead of its jobs are counted apart, so that they keep no job of the
client from a lease, and yield their seats at once. They are no fault of their client if they lapse.
"""

from collections import Counter
from collections.abc import Iterable

import trio

from coordinator.leasing.clients import Clients
from coordinator.leasing.open_lease import Opening, OpenLease
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import LeaseId, PeerId
from protocol.limits import CLOCK_SKEW_MAX_MS

# A node reports an opening within five seconds; two such reports may be lost.
REPORTED_WITHIN_MS = 15_000
ROOM_RETRY_MS = 1_000
# Leases ahead of their jobs, of one client: a busy gateway's pools for some models and sizes.
LEASES_AHEAD_MAX = 64
# While others wait, a lease keeps its seat for so long without a job that can run: a client opens
# one within a second, and an upload that takes longer may well take half a minute.
YIELD_AFTER_MS = 3_000


class TooManyUnopenedError(RemoteProtocolError):
    """The client has as many unopened leases as its record allows."""


class Openings:
    """Counts unopened leases by client, and wakes those that wait for room."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._unopened: Counter[PeerId] = Counter()
        self._ahead: dict[PeerId, dict[LeaseId, OpenLease]] = {}
        self._waiting: dict[PeerId, trio.lowlevel.ParkingLot] = {}

    def check_room_ahead(self, client: PeerId) -> None:
        """For a lease ahead of its job. Raises RemoteProtocolError (RATE_LIMITED)."""
        most = self._clients.look_up(client).unopened_max // 2
        if len(self._ahead.get(client, ())) >= min(most, LEASES_AHEAD_MAX):
            raise RemoteProtocolError(
                "this client has leased enough ahead of its jobs",
                code=Code.RATE_LIMITED,
                retry_after_ms=ROOM_RETRY_MS,
            )

    def take_ahead(self) -> list[OpenLease]:
        """The leases without a job, as others need their seats now: each once."""
        found = [
            opened
            for leases in self._ahead.values()
            for opened in leases.values()
            if not opened.has_yielded
        ]
        for opened in found:
            opened.has_yielded = True
        return found

    def check_room(self, client: PeerId) -> None:
        """Raises TooManyUnopenedError (RATE_LIMITED)."""
        record = self._clients.look_up(client)
        if self._unopened[client] < record.unopened_max:
            return
        why = f"it gets one at a time, because {record.complaint}; " if record.is_bad else ""
        raise TooManyUnopenedError(
            f"this client has {self._unopened[client]} leases that no node has reported as opened; "
            f"{why}open them, say that nothing came of them, or wait until they are over",
            code=Code.RATE_LIMITED,
            retry_after_ms=ROOM_RETRY_MS,
        )

    async def wait_room(self, client: PeerId, *, until: float) -> bool:
        """Whether there may be room now; False if the trio time `until` came first."""
        lot = self._waiting.setdefault(client, trio.lowlevel.ParkingLot())
        with trio.move_on_at(until) as scope:
            await lot.park()
        if not lot:
            self._waiting.pop(client, None)
        return not scope.cancelled_caught

    def begin(self, opened: OpenLease) -> None:
        granted = opened.lease.message
        if opened.is_ahead:
            self._ahead.setdefault(granted.client, {})[granted.lease_id] = opened
        elif opened.opening is Opening.AWAITED:
            self._unopened[granted.client] += 1

    def end(self, opened: OpenLease) -> None:
        """The lease is over, opened or not."""
        self._change(opened, Opening.UNKNOWN)

    def note_opened(self, opened: OpenLease) -> None:
        if opened.opening in (Opening.AWAITED, Opening.FORGONE, Opening.UNKNOWN):
            self._change(opened, Opening.REPORTED)
            self._clients.keep(opened.lease.message.client).note_opened(is_opened=True)

    def note_never_opened(self, opened: OpenLease) -> None:
        """Our own client says so, which knows."""
        self._change(opened, Opening.NEVER)

    def abandon(self, opened: OpenLease) -> bool:
        """Its client asks for another lease of the same job. Returns whether this one had not been
        opened so far."""
        return self._leave(opened, Opening.UNKNOWN)

    def forgo(self, opened: OpenLease) -> bool:
        """Its client has signed that it got nothing of it: it could not reach the node, say, and
        leaves no lease open on purpose. Returns whether this one had not been opened so far."""
        return self._leave(opened, Opening.FORGONE)

    def note_unopened(self, opened: OpenLease) -> None:
        """It can be opened no more."""
        if opened.opening is not Opening.FORGONE and not opened.is_ahead:
            self._clients.keep(opened.lease.message.client).note_opened(is_opened=False)
        self._change(opened, Opening.MISSED)

    def overdue(self, leases: Iterable[OpenLease], now_ms: int) -> list[OpenLease]:
        """Those that can be opened no more, and were not as far as we know."""
        late_ms = now_ms - CLOCK_SKEW_MAX_MS - REPORTED_WITHIN_MS
        return [
            opened
            for opened in leases
            if opened.opening in (Opening.AWAITED, Opening.FORGONE)
            and opened.lease.message.open_before_ms <= late_ms
        ]

    def idle(self, leases: Iterable[OpenLease], now_ms: int) -> list[OpenLease]:
        """Those whose jobs cannot run yet: they are not opened, or their payloads arrive."""
        since_ms = now_ms - YIELD_AFTER_MS
        return [
            opened
            for opened in leases
            if (opened.opening is Opening.AWAITED or opened.is_arriving)
            and opened.lease.message.issued_at_ms <= since_ms
        ]

    def _leave(self, opened: OpenLease, opening: Opening) -> bool:
        was_awaited = opened.opening is Opening.AWAITED
        if was_awaited:
            self._change(opened, opening)
        return was_awaited

    def _change(self, opened: OpenLease, opening: Opening) -> None:
        was, opened.opening = opened.opening, opening
        client = opened.lease.message.client
        if opened.is_ahead:
            self._forget_ahead(client, opened.lease.message.lease_id)
            return
        if was is not Opening.AWAITED:
            return
        self._unopened[client] -= 1
        if not self._unopened[client]:
            del self._unopened[client]
        lot = self._waiting.get(client)
        if lot is not None:
            lot.unpark_all()

    def _forget_ahead(self, client: PeerId, lease_id: LeaseId) -> None:
        leases = self._ahead.get(client, {})
        leases.pop(lease_id, None)
        if not leases:
            self._ahead.pop(client, None)
