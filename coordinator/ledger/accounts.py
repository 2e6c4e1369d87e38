"""Accounts: who owns money, and the four sums that say how much. Pure values, no storage.

The accounting model is TigerBeetle's: an account has debits and credits, each posted or pending,
and its balance is their difference. Money in the sense of this market is a credit balance.
"""

from enum import StrEnum
from typing import NamedTuple, NewType

from protocol.ids import PeerId

# A peer id, or the name of a system account: no name is ever a valid peer id.
AccountId = NewType("AccountId", str)


class AccountKind(StrEnum):
    """Why an account was first opened. Descriptive: a node's owner may also buy."""

    CLIENT = "client"
    NODE = "node"
    SYSTEM = "system"


class SystemAccount:
    """The operator's own accounts, opened with the database."""

    # The outside world: its debit balance is the money in circulation, so it may overdraw.
    ISSUANCE = AccountId("issuance")
    # Money between a client and a node: holds point here, captures pass through.
    ESCROW = AccountId("escrow")
    # The operator's fees.
    OPERATOR = AccountId("operator")
    # What the operator pays nodes for answers that the coordinator itself cut. It may overdraw: the
    # debit balance is what the operator has given away.
    GOODWILL = AccountId("goodwill")


class Account(NamedTuple):
    """One account with its balances, in nano-credits.

    A NamedTuple because one is made for every account of every commit: a quarter of the cost of a
    frozen dataclass.
    """

    id: AccountId
    kind: AccountKind
    may_overdraw: bool = False
    debits_pending: int = 0
    debits_posted: int = 0
    credits_pending: int = 0
    credits_posted: int = 0
    label: str = ""
    created_at_ms: int = 0

    @property
    def available_nano(self) -> int:
        """What may be spent now: held money counts as gone, incoming holds do not count."""
        return self.credits_posted - self.debits_posted - self.debits_pending

    @property
    def held_nano(self) -> int:
        return self.debits_pending

    @property
    def is_empty(self) -> bool:
        """True if no money was ever in it, not even pending."""
        return not (
            self.debits_pending or self.debits_posted or self.credits_pending or self.credits_posted
        )

    @property
    def posted_nano(self) -> int:
        """The balance as if every hold were released."""
        return self.credits_posted - self.debits_posted


SYSTEM_ACCOUNTS = (
    Account(SystemAccount.ISSUANCE, AccountKind.SYSTEM, may_overdraw=True),
    Account(SystemAccount.ESCROW, AccountKind.SYSTEM),
    Account(SystemAccount.OPERATOR, AccountKind.SYSTEM),
    Account(SystemAccount.GOODWILL, AccountKind.SYSTEM, may_overdraw=True),
)


def account_of(peer_id: PeerId) -> AccountId:
    """A party's account: its peer id, so that the holder of its key owns it."""
    return AccountId(peer_id)
