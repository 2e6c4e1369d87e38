"""Tells the owner once a day whether a newer version can be had. Nothing waits for the answer, no
answer is an answer, and `update_check = false` asks nothing.
"""

import json
import re
from collections.abc import Callable

import httpx
import structlog
import trio

log = structlog.get_logger(__name__)

INDEX_URL = "https://pypi.org/pypi/capacloud/json"
# Not while a node starts, and not for a node of a test.
FIRST_AFTER_S = 300.0
EVERY_S = 24 * 3_600.0
_WITHIN_S = 10.0
# The index tells all versions of a package; ours are few.
_BYTES_MAX = 8 * 1024 * 1024
_RELEASE = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}")


def newer_version(ours: str, theirs: str) -> bool:
    """By whole releases only: a release candidate is no news."""
    if not _RELEASE.fullmatch(ours) or not _RELEASE.fullmatch(theirs):
        return False
    return _numbers(theirs) > _numbers(ours)


async def fetch_version(url: str) -> str:
    """What the index offers; empty if it does not say, whatever the reason."""
    try:
        with trio.fail_after(_WITHIN_S):
            async with httpx.AsyncClient() as client, client.stream("GET", url) as answer:
                if answer.status_code != httpx.codes.OK:
                    return ""
                data = await _read(answer)
        version = json.loads(data)["info"]["version"]
    except (httpx.HTTPError, httpx.InvalidURL, trio.TooSlowError, OSError):
        return ""
    except (ValueError, KeyError, TypeError):
        return ""
    return version if isinstance(version, str) else ""


async def _read(answer: httpx.Response) -> bytes:
    """What came, or nothing if it is too much; the deadline ends an answer without end."""
    data = b""
    async for piece in answer.aiter_bytes():
        if len(data) <= _BYTES_MAX:
            data += piece
    return data if len(data) <= _BYTES_MAX else b""


class UpdateWatch:
    """`on_newer` gets a sentence for the owner."""

    def __init__(
        self,
        ours: str,
        *,
        is_wanted: Callable[[], bool],
        on_newer: Callable[[str], None],
        url: str = INDEX_URL,
    ) -> None:
        self._ours = ours
        self._is_wanted = is_wanted
        self._on_newer = on_newer
        self._url = url

    async def run(self) -> None:
        """Until cancelled."""
        await trio.sleep(FIRST_AFTER_S)
        while True:
            if self._is_wanted():
                await self.look()
            await trio.sleep(EVERY_S)

    async def look(self) -> None:
        found = await fetch_version(self._url)
        if newer_version(self._ours, found):
            log.info("newer_version", ours=self._ours, found=found)
            self._on_newer(
                f"version {found} is out, this is {self._ours}: `pip install --upgrade capacloud`, "
                "then start the node again"
            )


def _numbers(release: str) -> tuple[int, ...]:
    parts = [int(part) for part in release.split(".")]
    return tuple([*parts, 0, 0, 0][:4])
