"""Who sent an HTTP request."""

from dataclasses import dataclass

from protocol.keys import SigningKey

# How old a Caller may be: for so long a revoked key may still work, against one database read per
# key and period.
CALLER_TTL_S = 5.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. `remaining_nano` is what the key's budget had left when it was looked up;
    None is no limit."""

    key_id: str
    signing_key: SigningKey
    requests_per_minute: int | None = None
    remaining_nano: int | None = None
