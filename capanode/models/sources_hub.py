"""Models from a Hugging Face hub, over plain HTTP: revision → file list → resumable downloads.

Only formats that hold data are fetched (safetensors, JSON, text, templates). Every file is checked
against the digest in the hub's own list, and the revision is pinned to its commit.
"""

import functools
import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from capanode.models.errors import DownloadError, SourceError, UnsafeModelError
from capanode.models.files import disk_errors_named
from capanode.models.hub_connection import HubConnection, HubOptions, TryAgain
from capanode.models.hub_download import FRUITLESS_TRIES_MAX, FileTransfer, HubDownload, wait_s
from capanode.models.piece_file import Hash, PieceFile
from capanode.models.progress import Progress, ProgressCallback
from capanode.models.sources import is_wanted_file
from protocol.ids import Digest, is_digest

# A file list with 10,000 entries is about 3 MB.
_LISTING_BYTES_MAX = 16 * 1024 * 1024
_FILES_MAX = 1_000
_LISTING_WITHIN_S = 60.0


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

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def wanted(self) -> dict[Digest, int]:
        """The files by content, with their bytes: small ones have no sha256, and count apart."""
        return {
            Digest(file.sha256 or f"{self.commit}/{file.path}"): file.bytes for file in self.files
        }


class HubClient:
    """Talks to one hub. `sleep` and `clock` are arguments so that tests need not wait."""

    def __init__(
        self,
        options: HubOptions,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._sleep = sleep
        self._clock = clock
        self._deadline_s = clock() + options.timeout_s
        self._lines = [
            HubConnection(options, transport=transport, clock=clock)
            for _ in range(options.connections)
        ]

    def close(self) -> None:
        for line in self._lines:
            line.close()

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
        if listing.bytes > self._options.bytes_max:
            raise SourceError(f"{repo} has {listing.bytes} bytes, over the limit of one model")
        return listing

    def download(
        self, listing: HubListing, target: Path, partial: Path, *, progress: ProgressCallback
    ) -> None:
        """Fetch every listed file into `target`. All wait in `partial` until the last one is there,
        so that the next call goes on where this one stopped."""

        def report(received: int) -> None:
            progress(Progress(f"download {listing.repo}", received, listing.bytes))

        with disk_errors_named(target), ExitStack() as opened:
            transfers = []
            for file in listing.files:
                transfer = self._transfer(listing, file, partial)
                opened.callback(transfer.file.close)
                transfers.append(transfer)
            HubDownload(
                transfers,
                self._lines,
                self._options,
                deadline_s=self._deadline_s,
                clock=self._clock,
                sleep=self._sleep,
            ).run(report)
            for file, transfer in zip(listing.files, transfers, strict=True):
                transfer.file.move(target / file.path)

    def bytes_here(self, listing: HubListing, partial: Path) -> int:
        """What an earlier download has left in `partial`."""
        found = 0
        for file in listing.files:
            transfer = self._transfer(listing, file, partial)
            found += transfer.file.have_bytes
            transfer.file.close()
        return found

    def _transfer(self, listing: HubListing, file: HubFile, partial: Path) -> FileTransfer:
        name = hashlib.sha256(f"{listing.commit}/{file.path}".encode()).hexdigest()
        return FileTransfer(
            name=f"{file.path} of {listing.repo}",
            url=f"/{quote(listing.repo)}/resolve/{listing.commit}/{quote(file.path)}",
            file=PieceFile(
                partial / name,
                file.bytes,
                new_hash=hashlib.sha256
                if file.sha256
                else functools.partial(_git_hash, file.bytes),
                piece_bytes=self._options.piece_bytes,
            ),
            digest=file.sha256 or file.git_sha1,
        )

    def _get_small(self, url: str, *, what: str) -> bytes:
        line, sleep = self._lines[0], self._sleep or time.sleep
        for attempt in range(FRUITLESS_TRIES_MAX):
            # Also a server that sends its answer byte by byte ends in time.
            watch = threading.Timer(_LISTING_WITHIN_S, line.cut)
            watch.daemon = True
            watch.start()
            try:
                with line.opened(url, {}, what=what) as response:
                    data = b""
                    for chunk in response.iter_bytes():
                        data += chunk
                        if len(data) > _LISTING_BYTES_MAX:
                            raise SourceError(f"the hub's list of {what} is too long")
                    return data
            except (httpx.TransportError, TryAgain) as error:
                failure = error
                sleep(wait_s(attempt, error))
            finally:
                watch.cancel()
        raise DownloadError(
            f"the hub at {self._options.endpoint} does not answer for {what} ({failure!r}): check "
            "the network and the endpoint"
        )


def _parse_listing(repo: str, data: bytes) -> HubListing:
    """Raises SourceError if the hub's answer is not what the API promises."""
    try:
        plain = httpx.Response(200, content=data).json()
        commit = plain["sha"]
        if not isinstance(commit, str) or len(commit) != 40 or not commit.isalnum():
            raise ValueError("no commit")
        siblings = plain["siblings"]
        files = tuple(_parse_file(item) for item in siblings if is_wanted_file(item["rfilename"]))
        licence = str((plain.get("cardData") or {}).get("license") or "unknown")[:100]
        if plain.get("private") or plain.get("gated"):
            # Not for everyone: no node passes it on, whatever its licence allows.
            licence += " (not public)"
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


def _git_hash(size: int) -> Hash:
    """git's object id is the sha1 of a header and the content; it is what small files have."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
