"""One line to a hub: requests over it, what the hub's answers mean, and how to cut it from another
thread while it waits for bytes that do not come."""

import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from capanode.models.errors import AccessDeniedError, DownloadError, SourceError
from capanode.models.piece_file import PIECE_BYTES

# A server that does not take a connection in this time is down, whatever it does later.
_CONNECT_WITHIN_S = 10.0
# The hub, and where its redirects lead.
_STREAMS_KEPT = 4
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How to reach a hub, from the program's configuration. The token never shows in a repr."""

    endpoint: str = "https://huggingface.co"
    token: str | None = None
    bytes_max: int = 512 * 1024**3
    timeout_s: float = 24 * 3_600.0
    stall_timeout_s: float = 60.0
    connections: int = 8
    piece_bytes: int = PIECE_BYTES

    def __repr__(self) -> str:
        return f"HubOptions(endpoint={self.endpoint!r}, token={'set' if self.token else None})"


class TryAgain(Exception):
    """The hub, or the way to it, cannot right now."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class HubConnection:
    """One request at a time, over one or two sockets. `cut`, `end` and `check` are for other
    threads."""

    def __init__(
        self,
        options: HubOptions,
        *,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._clock = clock
        self._asked_at_s: float | None = None
        self._is_over = False
        self._streams: deque[Any] = deque(maxlen=_STREAMS_KEPT)
        # httpx drops the authorization header when a redirect leads to another host, port or
        # scheme: where large files lie is often a server of another company.
        self._http = httpx.Client(
            base_url=options.endpoint,
            headers=_headers(options),
            follow_redirects=True,
            max_redirects=5,
            timeout=httpx.Timeout(options.stall_timeout_s, connect=_CONNECT_WITHIN_S),
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def cut(self) -> None:
        """End what is under way: its thread gets a transport error at once."""
        for stream in list(self._streams):
            found = stream.get_extra_info("socket")
            if found is not None:
                with suppress(OSError):
                    # Not the method of an SSL socket, which also forgets the state that the other
                    # thread reads with.
                    socket.socket.shutdown(found, socket.SHUT_RDWR)

    def end(self) -> None:
        """Cut what is under way and what is about to connect: nothing more is wanted."""
        self._is_over = True
        self.cut()

    def check(self, now_s: float) -> None:
        """Cut a line whose answer has not begun: a server may send a header byte by byte."""
        asked_at_s = self._asked_at_s
        if asked_at_s is not None and now_s - asked_at_s > self._options.stall_timeout_s:
            self.cut()

    @contextmanager
    def opened(self, url: str, headers: dict[str, str], *, what: str) -> Iterator[httpx.Response]:
        """An answer whose status is good. Raises TryAgain, ModelError, httpx.TransportError."""
        self._asked_at_s = self._clock()
        try:
            with self._http.stream(
                "GET", url, headers=headers, extensions={"trace": self._trace}
            ) as response:
                self._asked_at_s = None
                self._check_status(response, what)
                yield response
        except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
            raise DownloadError(f"the hub sends us to a wrong address: {error}") from error
        finally:
            self._asked_at_s = None

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._streams.append(info["return_value"])
            if self._is_over:
                self.cut()

    def _check_status(self, response: httpx.Response, what: str) -> None:
        """Raises what the status means; returns if the body is the answer."""
        status = response.status_code
        if status in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            return
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise RangeRefused("the hub has no such range")
        if status in _RETRY_STATUS:
            after = response.headers.get("retry-after", "")
            raise TryAgain(f"status {status}", float(after) if after.isdecimal() else None)
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise AccessDeniedError(self._denied(response, what))
        if status == httpx.codes.NOT_FOUND:
            raise SourceError(f"{what} is not on {self._options.endpoint}: check its spelling")
        raise DownloadError(f"the hub answered {status} for {what}")

    def _denied(self, response: httpx.Response, what: str) -> str:
        repo = what.partition("@")[0]
        page = f"{self._options.endpoint}/{repo}"
        get_token = (
            f"make a token of that account ({self._options.endpoint}/settings/tokens) and put it "
            "into the variable HF_TOKEN or the setting hub_token"
        )
        if response.headers.get("x-error-code") == "GatedRepo" and self._options.token:
            return (
                f"{repo} is gated, and the account of your token has not been let in: accept the "
                f"model's licence at {page} (some owners answer by hand), then pull again"
            )
        if self._options.token:
            return (
                f"the hub does not let your token read {repo}: accept the model's terms at {page}, "
                "if it has some, and check that the token may read it (HF_TOKEN, or hub_token)"
            )
        return (
            f"the hub lets only some accounts read {repo}, or there is no such model: accept the "
            f"model's licence or terms at {page}, then {get_token}"
        )


class RangeRefused(TryAgain):
    """What we have of a file is not a part of what the hub has."""


def _headers(options: HubOptions) -> dict[str, str]:
    headers = {"user-agent": "capacloud"}
    if options.token:
        parts = urlsplit(options.endpoint)
        if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise AccessDeniedError(
                f"your token would go to {options.endpoint} unencrypted: use https in hub_url, or "
                "unset HF_TOKEN and hub_token"
            )
        headers["authorization"] = f"Bearer {options.token}"
    return headers
