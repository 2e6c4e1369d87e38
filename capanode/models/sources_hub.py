"""Models from a Hugging Face hub, over plain HTTP: revision → file list → resumable downloads.

Only formats that hold data are fetched (safetensors, JSON, text, templates). Every file is checked
against the digest in the hub's own list, and the revision is pinned to its commit.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from capanode.models.errors import (
    AccessDeniedError,
    DigestMismatchError,
    DownloadError,
    SourceError,
    UnsafeModelError,
)
from capanode.models.files import disk_errors_named
from capanode.models.progress import Progress, ProgressCallback
from capanode.models.sources import is_wanted_file
from protocol.ids import is_digest

# A file list with 10,000 entries is about 3 MB.
_LISTING_BYTES_MAX = 16 * 1024 * 1024
_FILES_MAX = 1_000
_CHUNK_BYTES = 1024 * 1024
# A connection that breaks is resumed where it was; one that brings nothing at all ends this soon.
_FRUITLESS_TRIES_MAX = 5
_FIRST_WAIT_S = 0.5
_WAIT_MAX_S = 30.0
_RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How to reach a hub, from the program's configuration. The token never shows in a repr."""

    endpoint: str = "https://huggingface.co"
    token: str | None = None
    bytes_max: int = 512 * 1024**3
    timeout_s: float = 6 * 3_600.0
    stall_timeout_s: float = 60.0

    def __repr__(self) -> str:
        return f"HubOptions(endpoint={self.endpoint!r}, token={'set' if self.token else None})"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file as the hub lists it: large ones with a sha256, small ones with git's own sha1."""

    path: str
    bytes: int
    sha256: str | None
    git_sha1: str


@dataclass(frozen=True, slots=True)
class HubListing:
    """What a revision holds; `commit` is what it resolved to."""

    repo: str
    commit: str
    licence: str
    files: tuple[HubFile, ...]


class HubClient:
    """Talks to one hub. `sleep` and `clock` are arguments so that tests need not wait."""

    def __init__(
        self,
        options: HubOptions,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._sleep = sleep
        self._clock = clock
        self._deadline_s = clock() + options.timeout_s
        headers = {"user-agent": "capacloud"}
        if options.token:
            headers["authorization"] = f"Bearer {options.token}"
        # httpx drops the authorization header when a redirect leads to another host.
        self._http = httpx.Client(
            base_url=options.endpoint,
            headers=headers,
            follow_redirects=True,
            max_redirects=5,
            timeout=options.stall_timeout_s,
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "HubClient":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def list_files(self, repo: str, revision: str) -> HubListing:
        """The files of `repo` at `revision` that we would fetch.

        Raises DownloadError, AccessDeniedError; UnsafeModelError if its weights are only pickled;
        SourceError if it is larger than the limit.
        """
        url = f"/api/models/{quote(repo)}/revision/{quote(revision, safe='')}?blobs=true"
        data = self._get_small(url, what=f"{repo}@{revision}")
        listing = _parse_listing(repo, data)
        names = [file.path for file in listing.files]
        if not any(name.endswith(".safetensors") for name in names):
            raise UnsafeModelError(
                f"{repo} has no safetensors weights at its top: pickled weights are code and are "
                "never loaded; look for a revision or a fork that has safetensors"
            )
        total = sum(file.bytes for file in listing.files)
        if total > self._options.bytes_max:
            raise SourceError(f"{repo} has {total} bytes, over the limit of one model")
        return listing

    def download(
        self, listing: HubListing, target: Path, partial: Path, *, progress: ProgressCallback
    ) -> None:
        """Fetch every listed file into `target`. All wait in `partial` until the last one is there,
        so that the next call goes on where this one stopped."""
        total = sum(file.bytes for file in listing.files)
        done = 0
        parts = {}
        for file in listing.files:
            part = partial / hashlib.sha256(f"{listing.commit}/{file.path}".encode()).hexdigest()
            parts[part] = target / file.path
            base = done

            def report(received: int, *, base: int = base) -> None:
                progress(Progress(f"download {listing.repo}", base + received, total))

            with disk_errors_named(target):
                self._fetch(listing, file, part, report)
            done += file.bytes
        with disk_errors_named(target):
            for part, placed in parts.items():
                placed.parent.mkdir(parents=True, exist_ok=True)
                part.replace(placed)

    def _fetch(
        self, listing: HubListing, file: HubFile, part: Path, report: Callable[[int], None]
    ) -> None:
        """Bring `part` to full length, over as many connections as it takes, then check it."""
        url = f"/{quote(listing.repo)}/resolve/{listing.commit}/{quote(file.path)}"
        have = part.stat().st_size if part.exists() else 0
        fruitless = 0
        while have < file.bytes or not part.exists():
            before = have
            try:
                have = self._receive(url, file, part, have, report)
                failure: Exception | None = None
            except (httpx.TransportError, _TryAgain) as error:
                have = part.stat().st_size if part.exists() else 0
                failure = error
            fruitless = 0 if have > before else fruitless + 1
            if fruitless >= _FRUITLESS_TRIES_MAX:
                raise DownloadError(
                    f"{file.path} of {listing.repo} does not arrive ({failure!r}): check the "
                    "network and pull again, the download goes on where it stopped"
                )
            if failure is not None:
                self._wait(fruitless, failure)
        if not _has_digest(part, file):
            part.unlink()
            raise DigestMismatchError(
                f"{file.path} of {listing.repo} is not what the hub's list says: pull again; if "
                "it stays so, something between here and the hub changes files"
            )

    def _receive(
        self, url: str, file: HubFile, part: Path, have: int, report: Callable[[int], None]
    ) -> int:
        """Append what one connection brings; returns the new length."""
        headers = {"range": f"bytes={have}-"} if have else {}
        # A compressed reply would make offsets and lengths mean something else.
        headers["accept-encoding"] = "identity"
        with self._opened(url, headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)
                raise _TryAgain("the hub has no such range", retry_after_s=0.0)
            self._check_status(response, file.path)
            resumed = response.headers.get("content-range", "").startswith(f"bytes {have}-")
            if have and not (response.status_code == httpx.codes.PARTIAL_CONTENT and resumed):
                have = 0
            with part.open("ab" if have else "wb") as out:
                # As they come: bytes that wait for a full chunk are lost when the line breaks.
                for chunk in response.iter_raw():
                    have += len(chunk)
                    if have > file.bytes:
                        out.truncate(0)
                        raise DigestMismatchError(f"{file.path} is longer than the hub's list says")
                    out.write(chunk)
                    report(have)
                    self._check_deadline(file.path)
        return have

    def _get_small(self, url: str, *, what: str) -> bytes:
        for attempt in range(_FRUITLESS_TRIES_MAX):
            try:
                with self._opened(url, {}) as response:
                    self._check_status(response, what)
                    data = b""
                    for chunk in response.iter_bytes():
                        data += chunk
                        if len(data) > _LISTING_BYTES_MAX:
                            raise SourceError(f"the hub's list of {what} is too long")
                    return data
            except (httpx.TransportError, _TryAgain) as error:
                failure = error
                self._wait(attempt, error)
        raise DownloadError(
            f"the hub at {self._options.endpoint} does not answer for {what} ({failure!r}): check "
            "the network and the endpoint"
        )

    @contextmanager
    def _opened(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        self._check_deadline(url)
        try:
            with self._http.stream("GET", url, headers=headers) as response:
                yield response
        except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
            raise DownloadError(f"the hub sends us to a wrong address: {error}") from error

    def _check_status(self, response: httpx.Response, what: str) -> None:
        """Raises what the status means; returns if the body is the answer."""
        status = response.status_code
        if status in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            return
        if status in _RETRY_STATUS:
            after = response.headers.get("retry-after", "")
            raise _TryAgain(f"status {status}", float(after) if after.isdecimal() else None)
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise AccessDeniedError(
                f"the hub does not let us read {what}: accept the model's terms on its page, and "
                "set hub_token in the configuration to a token of that account"
            )
        if status == httpx.codes.NOT_FOUND:
            raise SourceError(f"{what} is not on {self._options.endpoint}: check its spelling")
        raise DownloadError(f"the hub answered {status} for {what}")

    def _wait(self, tries: int, failure: Exception) -> None:
        wait_s = min(_WAIT_MAX_S, _FIRST_WAIT_S * 2**tries)
        if isinstance(failure, _TryAgain) and failure.retry_after_s is not None:
            wait_s = min(_WAIT_MAX_S, failure.retry_after_s)
        self._sleep(wait_s)

    def _check_deadline(self, what: str) -> None:
        if self._clock() >= self._deadline_s:
            raise DownloadError(f"{what} took too long: pull again, it goes on where it stopped")


class _TryAgain(Exception):
    """The hub said that it cannot right now."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def _parse_listing(repo: str, data: bytes) -> HubListing:
    """Raises SourceError if the hub's answer is not what the API promises."""
    try:
        plain = httpx.Response(200, content=data).json()
        commit = plain["sha"]
        if not isinstance(commit, str) or len(commit) != 40 or not commit.isalnum():
            raise ValueError("no commit")
        siblings = plain["siblings"]
        files = tuple(_parse_file(item) for item in siblings if is_wanted_file(item["rfilename"]))
        licence = str((plain.get("cardData") or {}).get("license") or "unknown")[:128]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"the hub's list of {repo} makes no sense: {error!r}") from None
    if len(files) > _FILES_MAX:
        raise SourceError(f"{repo} has too many files")
    return HubListing(repo, commit, licence, files)


def _parse_file(item: dict[str, Any]) -> HubFile:
    size, lfs = item["size"], item.get("lfs")
    sha256 = lfs["sha256"] if lfs else None
    if type(size) is not int or size < 0 or (sha256 is not None and not is_digest(sha256)):
        raise ValueError("a file without size or digest")
    return HubFile(item["rfilename"], size, sha256, str(item["blobId"]))


def _has_digest(path: Path, file: HubFile) -> bool:
    """git's object id is the sha1 of a header and the content; it is what small files have."""
    sha1 = f"blob {file.bytes}\0".encode()
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(sha1, usedforsecurity=False)
    with path.open("rb", buffering=0) as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == (file.sha256 or file.git_sha1)
