"""Which web pages may call the gateway from a browser: none, unless the operator lists them."""

from coordinator.gateway.errors import ApiError, Headers, Problem, ProblemKind
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Response, header

_ANY = "*"
_ASKS_METHOD = b"access-control-request-method"

# A browser asks again after this; ten minutes is what the strictest of them honours.
_PREFLIGHT_AGE_S = 600

_EXPOSED = (
    "x-request-id, retry-after, retry-after-ms, x-capacloud-job-id, x-capacloud-node, "
    "x-capacloud-attempts, x-capacloud-price-nano, x-capacloud-amount-nano, "
    "x-capacloud-overhead-ms, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    "x-ratelimit-reset-requests, x-should-retry, request-id, server-timing"
)


class Cors:
    """`origins` are exact, such as https://chat.example; `*` stands for any."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._origins = frozenset(origins)

    def headers(self, request: Request) -> Headers:
        """What lets the page read the response; empty for pages that may not."""
        if not self._origins:
            return ()
        origin = request.header(b"origin")
        if origin is None or not self._allows(origin):
            return ()
        return (
            header("access-control-allow-origin", origin),
            header("access-control-expose-headers", _EXPOSED),
            header("vary", "Origin"),
        )

    def preflight(self, request: Request) -> Response | None:
        """The answer to a browser that asks first; None if this is no such question.

        Raises ApiError (403) for pages that are not listed.
        """
        if request.method != "OPTIONS" or request.header(_ASKS_METHOD) is None:
            return None
        if not self.headers(request):
            raise ApiError(
                Problem(
                    403,
                    "this page may not call the gateway: its operator has to list the origin in "
                    "the setting cors_origins (flag --cors-origins)",
                    kind=ProblemKind.PERMISSION,
                    code="origin_not_allowed",
                )
            )
        private: Headers = ()
        if request.header(b"access-control-request-private-network") == "true":
            private = (header("access-control-allow-private-network", "true"),)
        return Response(
            204,
            b"",
            headers=(
                header("access-control-allow-methods", "GET, HEAD, POST, DELETE, OPTIONS"),
                header(
                    "access-control-allow-headers",
                    request.header(b"access-control-request-headers") or "authorization",
                ),
                header("access-control-max-age", _PREFLIGHT_AGE_S),
                *private,
            ),
        )

    def _allows(self, origin: str) -> bool:
        return _ANY in self._origins or origin in self._origins
