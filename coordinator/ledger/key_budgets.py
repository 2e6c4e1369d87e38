"""Budgets of API keys while a batch of chains is applied.

A key may hold no more than its budget leaves: the budget, less what was captured for it (spent),
less what its open holds reserve. The check runs in the transaction that makes the hold, so a budget
or a revocation that the asker saw some time ago decides nothing.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from coordinator.ledger.transfers import Result
from protocol.ids import TransferId


class KeyFunds(NamedTuple):
    """What an API key may still hold when a batch begins; None is no limit."""

    is_revoked: bool
    left_nano: int | None


class KeyedHold(NamedTuple):
    """The API key that an open hold counts against, and with how much: the hold's amount, or less
    once its job has ended and can cost no more."""

    api_key_id: str
    counted_nano: int


class KeyBudgets:
    """`funds` are the keys that pay for new holds, `holds` the open holds that have a key."""

    def __init__(
        self, funds: Mapping[str, KeyFunds], holds: Mapping[TransferId, KeyedHold]
    ) -> None:
        self._funds = funds
        self._holds = dict(holds)
        # How much less than when the batch began a key has left.
        self._taken_nano: defaultdict[str, int] = defaultdict(int)
        self._spent_nano: defaultdict[str, int] = defaultdict(int)

    def key_of(self, hold_id: TransferId) -> str | None:
        hold = self._holds.get(hold_id)
        return hold.api_key_id if hold is not None else None

    def spent(self) -> dict[str, int]:
        """What the batch has spent, by key."""
        return {key: amount_nano for key, amount_nano in self._spent_nano.items() if amount_nano}

    def check(self, key: str, amount_nano: int) -> Result:
        """Whether the key may pay for one more hold of this size. A key that does not exist is one
        that was revoked."""
        funds = self._funds.get(key)
        if funds is None or funds.is_revoked:
            return Result.API_KEY_REVOKED
        left_nano = funds.left_nano
        if left_nano is not None and amount_nano > left_nano - self._taken_nano[key]:
            return Result.EXCEEDS_BUDGET
        return Result.CREATED

    def hold(self, key: str, hold_id: TransferId, amount_nano: int) -> None:
        self._holds[hold_id] = KeyedHold(key, amount_nano)
        self._taken_nano[key] += amount_nano

    def forget(self, hold_id: TransferId) -> None:
        """Undo `hold`."""
        hold = self._holds.pop(hold_id, None)
        if hold is not None:
            self._taken_nano[hold.api_key_id] -= hold.counted_nano

    def end(self, hold_id: TransferId, *, sign: int) -> None:
        """A hold ended (sign 1): the key has again what it counted. Undo that with sign -1."""
        hold = self._holds.get(hold_id)
        if hold is not None:
            self._taken_nano[hold.api_key_id] -= sign * hold.counted_nano

    def spend(self, hold_id: TransferId, amount_nano: int) -> None:
        """This much was charged that the hold had reserved. Negative to undo that."""
        hold = self._holds.get(hold_id)
        if hold is not None:
            self._taken_nano[hold.api_key_id] += amount_nano
            self._spent_nano[hold.api_key_id] += amount_nano
