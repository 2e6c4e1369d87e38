"""What the files of HTTP users may take on the disk, and what they take.

Bytes count while they arrive, so that uploads at the same time cannot pass a bound together.
"""

import threading
from dataclasses import dataclass

from coordinator.gateway.errors import ApiError, Problem, ProblemKind, error_of
from protocol.errors import Code
from protocol.limits import MIB

GIB = 1024 * MIB
DAY_S = 24 * 3_600


@dataclass(frozen=True, slots=True)
class FileBounds:
    """`lifetime_s` is how long a file is kept whose owner says nothing."""

    # OpenAI's own bound on the input of a batch.
    file_bytes_max: int = 200 * MIB
    account_bytes_max: int = 2 * GIB
    all_bytes_max: int = 20 * GIB
    uploads_per_account_max: int = 4
    uploads_max: int = 32
    lifetime_s: int = 30 * DAY_S


DEFAULT_FILE_BOUNDS = FileBounds()


class Usage:
    """Bytes of each account and of all. Uploads grow in threads, hence the lock."""

    def __init__(self, bounds: FileBounds) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()
        self._bytes: dict[str, int] = {}
        self._all = 0

    def set(self, by_account: dict[str, int]) -> None:
        with self._lock:
            self._bytes = dict(by_account)
            self._all = sum(by_account.values())

    def grow(self, account: str, size: int) -> None:
        """Raises ApiError if so much more is not allowed."""
        with self._lock:
            if self._bytes.get(account, 0) + size > self._bounds.account_bytes_max:
                raise _no_room(f"your files have {self._bounds.account_bytes_max} bytes at most")
            if self._all + size > self._bounds.all_bytes_max:
                raise error_of(Code.STORAGE_FULL, "").but(
                    message="there is no room for more files here: try again later"
                )
            self._add(account, size)

    def has_room(self, account: str) -> bool:
        """Whether answers may come that have to be kept."""
        with self._lock:
            own = self._bytes.get(account, 0)
            return own < self._bounds.account_bytes_max and self._all < self._bounds.all_bytes_max

    def add(self, account: str, size: int) -> None:
        """What there is already, or is no more."""
        with self._lock:
            self._add(account, size)

    def _add(self, account: str, size: int) -> None:
        self._all += size
        left = self._bytes.get(account, 0) + size
        if left > 0:
            self._bytes[account] = left
        else:
            self._bytes.pop(account, None)


def _no_room(message: str) -> ApiError:
    problem = Problem(
        413, f"{message}: delete some first", kind=ProblemKind.REQUEST, code="files_full"
    )
    return ApiError(problem)
