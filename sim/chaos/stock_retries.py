"""When and after how long OpenAI's stock Python client asks again. Pure.

Written from its 3.x behaviour: two retries after a failed connection, a timeout, or a status that
is worth it; `x-should-retry` overrides the status; the server's wait counts if it is at most two
minutes, else half a second doubles up to eight, less a random quarter. A stream that breaks after
its status has arrived is not asked again by the client: `sim.chaos.load` says what becomes of it.
"""

import math
import random
from collections.abc import Mapping

RETRIES_MAX = 2
CONNECT_WITHIN_S = 5.0
_FIRST_WAIT_S = 0.5
_WAIT_S_MAX = 8.0
_SERVER_WAIT_S_MAX = 120.0
_RETRIED_STATUSES = (408, 409, 429)


def is_retried(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an error's status and headers (lower case) are worth asking again."""
    if (_server_wait_s(headers) or 0.0) > _SERVER_WAIT_S_MAX:
        return False
    wish = headers.get("x-should-retry")
    if wish in ("true", "false"):
        return wish == "true"
    return status in _RETRIED_STATUSES or status >= 500


def wait_s(retry: int, headers: Mapping[str, str], rng: random.Random) -> float:
    """The pause before retry 0, 1, …; `headers` are empty if there was no answer."""
    wanted_s = _server_wait_s(headers)
    if wanted_s is not None and 0 < wanted_s <= _SERVER_WAIT_S_MAX:
        return wanted_s
    return min(_FIRST_WAIT_S * 2.0**retry, _WAIT_S_MAX) * rng.uniform(0.75, 1.0)


def _server_wait_s(headers: Mapping[str, str]) -> float | None:
    for name, divisor in (("retry-after-ms", 1_000), ("retry-after", 1)):
        try:
            value = float(headers[name])
        except (KeyError, ValueError):
            continue
        return value / divisor if math.isfinite(value) else None
    return None
