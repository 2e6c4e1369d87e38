"""Whether a client has money at all, asked before it may take a seat, a probe or a turn.

The hold itself is what counts, and comes last. But matching, seats and breakers are touched before
it, and a client without an account must not touch them. A client that held money lately is not
looked up again, until a hold of it fails.
"""

from collections import OrderedDict

import trio

from coordinator.db.accounts import find_account
from coordinator.db.engine import Database
from coordinator.errors import CoordinatorError
from coordinator.ledger.accounts import account_of
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId
from protocol.money import format_credits

# A client that made a hold is taken for solvent this long; being wrong costs one failed hold.
_TRUSTED_S = 60.0
_CLIENTS_MAX = 10_000


class Funds:
    """What is known of clients' money: when the last hold succeeded, or what an account had."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._trusted_until: OrderedDict[PeerId, float] = OrderedDict()
        self._available_nano: OrderedDict[PeerId, int] = OrderedDict()

    async def check(self, client: PeerId) -> None:
        """Raises RemoteProtocolError: UNKNOWN_ACCOUNT, OUT_OF_FUNDS, or why storage failed."""
        if self._is_trusted(client):
            return
        try:
            account = await self._database.read(find_account, account_of(client))
        except CoordinatorError as error:
            raise RemoteProtocolError(str(error), code=error.code) from error
        if account is None:
            raise RemoteProtocolError(
                f"there is no account {client}: ask the operator of this market for one",
                code=Code.UNKNOWN_ACCOUNT,
            )
        self._available_nano[client] = account.available_nano
        _bound(self._available_nano)

    def check_ceiling(self, client: PeerId, ceiling_nano: int) -> None:
        """Raises RemoteProtocolError (OUT_OF_FUNDS) if the account had less than that."""
        if self._is_trusted(client):
            return
        if self._available_nano.get(client, ceiling_nano) < ceiling_nano:
            raise RemoteProtocolError(
                f"account {client} has less than {format_credits(ceiling_nano)} credits "
                "available: add credit, or wait for running jobs to release theirs",
                code=Code.OUT_OF_FUNDS,
            )

    def note_hold(self, client: PeerId) -> None:
        """A hold of this client is durable."""
        self._available_nano.pop(client, None)
        self._trusted_until[client] = trio.current_time() + _TRUSTED_S
        self._trusted_until.move_to_end(client)
        _bound(self._trusted_until)

    def forget(self, client: PeerId) -> None:
        """A hold of this client failed."""
        self._trusted_until.pop(client, None)

    def _is_trusted(self, client: PeerId) -> bool:
        return trio.current_time() < self._trusted_until.get(client, 0.0)


def _bound(known: OrderedDict[PeerId, float] | OrderedDict[PeerId, int]) -> None:
    while len(known) > _CLIENTS_MAX:
        known.popitem(last=False)
