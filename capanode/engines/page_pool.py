"""Which pages of a cache are free, which a job uses, and which keep tokens for jobs to come.

Only numbers: what a page holds is the business of its owner. A page that is given back under a key
keeps its tokens until room is needed, the longest unused first. Jobs give pages back last page
first, so that a beginning never goes before what follows it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class PagePool:
    """Pages 0 to `count`."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))[::-1]
        self._users = [0] * count
        self._keys: list[bytes | None] = [None] * count
        self._pages: dict[bytes, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # kept under a key, by last use

    @property
    def free_count(self) -> int:
        """Pages that `take` can give."""
        return len(self._free) + len(self._unused)

    @property
    def kept_count(self) -> int:
        """Pages that hold tokens and are used by no job."""
        return len(self._unused)

    def __contains__(self, key: bytes) -> bool:
        return key in self._pages

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The pages of the longest beginning of `keys` that is kept."""
        found: list[int] = []
        for key in keys:
            page = self._pages.get(key)
            if page is None:
                break
            found.append(page)
        return found

    def hold(self, pages: Iterable[int]) -> None:
        """One more job uses each of these pages."""
        for page in pages:
            if not self._users[page]:
                del self._unused[page]
            self._users[page] += 1

    def take(self) -> int:
        """A page for one job, of which nothing is kept; see `free_count`."""
        if not self._free:
            self.evict()
        page = self._free.pop()
        self._users[page] = 1
        return page

    def name(self, page: int, key: bytes) -> None:
        """Let jobs find what a page in use holds. A page that has the key already keeps it."""
        if key not in self._pages and self._keys[page] is None:
            self._keys[page] = key
            self._pages[key] = page

    def give_back(self, pages: Sequence[int]) -> None:
        """One job less uses these pages, which are in the order of its tokens."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            if self._keys[page] is None:
                self._free.append(page)
            else:
                self._unused[page] = None

    def evict(self) -> int:
        """Forget the kept page that is longest unused, and return it; see `kept_count`."""
        page, _ = self._unused.popitem(last=False)
        key = self._keys[page]
        assert key is not None, "pages without a key are free"
        del self._pages[key]
        self._keys[page] = None
        self._free.append(page)
        return page
