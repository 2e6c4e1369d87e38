"""A gateway without API keys serves the programs of its own machine, and no web page that a browser
on it happens to show.

A page can make a browser send requests to 127.0.0.1: plainly, which names its origin, or under a
name of its own that it points there (DNS rebinding), which names that host.
"""

import ipaddress

from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.errors import ApiError, Problem, ProblemKind
from coordinator.gateway.http.requests import Request

_ANY = "*"


def check_local(request: Request, config: GatewayConfig) -> None:
    """Raises ApiError (403)."""
    if config.needs_key:
        return
    origin = request.header(b"origin")
    if origin is not None and not {origin, _ANY} & set(config.cors_origins):
        raise _forbidden("this page may not use the gateway: its origin is not in cors_origins")
    if not _is_here(request.header(b"host") or ""):
        raise _forbidden("this gateway has no API keys, and is reached as 127.0.0.1 or localhost")


def _is_here(host: str) -> bool:
    """Without its port. HTTP/1.0 need not name any, and no browser speaks that."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _forbidden(message: str) -> ApiError:
    return ApiError(Problem(403, message, kind=ProblemKind.PERMISSION, code="origin_not_allowed"))
