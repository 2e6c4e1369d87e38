"""Who sent an HTTP request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from protocol.ids import PeerId
from protocol.keys import SigningKey

# How old a Caller may be: for so long a revoked key may still work, against one database read per
# key and period.
CALLER_TTL_S = 5.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and how many a minute it may send; None is no limit. `provider` is what
    the key says of routing where a request does not. `shares_account` says that one account pays
    for several people, who have a key each."""

    key_id: str
    signing_key: SigningKey
    requests_per_minute: int | None = None
    provider: Mapping[str, Any] = field(default_factory=dict)
    shares_account: bool = False

    @property
    def owner(self) -> PeerId:
        """Whose kept answers and share of the gateway these are: an account's, or one key's."""
        account = self.signing_key.peer_id
        return PeerId(f"{account}/{self.key_id}") if self.shares_account else account
