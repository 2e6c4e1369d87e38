"""Which web pages may call the gateway from a browser: none, unless the operator lists them."""

from coordinator.gateway.errors import Headers
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Response, header

_ANY = "*"

# A browser asks again after this; ten minutes is what the strictest of them honours.
_PREFLIGHT_AGE_S = 600

_EXPOSED = (
    "x-request-id, retry-after, retry-after-ms, x-capacloud-job-id, x-capacloud-node, "
    "x-capacloud-attempts, x-capacloud-price-nano, x-capacloud-amount-nano, "
    "x-capacloud-overhead-ms"
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
        """The answer to a browser that asks first; None if this is no such question."""
        if request.method != "OPTIONS" or not self.headers(request):
            return None
        return Response(
            204,
            b"",
            headers=(
                header("access-control-allow-methods", "GET, POST, OPTIONS"),
                header(
                    "access-control-allow-headers",
                    request.header(b"access-control-request-headers") or "authorization",
                ),
                header("access-control-max-age", _PREFLIGHT_AGE_S),
            ),
        )

    def _allows(self, origin: str) -> bool:
        return _ANY in self._origins or origin in self._origins
