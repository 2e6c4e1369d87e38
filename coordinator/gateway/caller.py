"""Who sent an HTTP request."""

from dataclasses import dataclass

from protocol.keys import SigningKey

# How old a Caller may be: for so long a revoked key may still work, against one database read per
# key and period.
CALLER_TTL_S = 5.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and how many a minute it may send; None is no limit."""

    key_id: str
    signing_key: SigningKey
    requests_per_minute: int | None = None
