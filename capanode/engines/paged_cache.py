"""Keys and values of all jobs in one pool of pages: a job takes pages as it grows, in any order.

For devices whose attention kernel reads block tables. A row is a place in the batch, as in
`KvCache`, but here it is only a list of pages: to move one costs nothing, and jobs that begin alike
list the same pages.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from capanode.engines.kv_cache import CacheShape
from capanode.engines.page_pool import PagePool

# The kernel wants multiples of it (flash-attention#1627).
PAGE_TOKENS = 256


class PagedCache:
    """`pool` has shape [layers, 2, pages, page_tokens, kv_heads, head_dim]: keys, then values. The
    last row is for padding, and has a page of its own."""

    # What a row takes is a multiple of it.
    granule_tokens = PAGE_TOKENS

    def __init__(self, shape: CacheShape, *, pages: int, device: torch.device) -> None:
        self.shape, self.device = shape, device
        sizes = (shape.layers, 2, pages, PAGE_TOKENS, shape.kv_heads, shape.head_dim)
        self.pool: Tensor = torch.zeros(sizes, dtype=shape.dtype, device=device)
        self.pages = PagePool(pages)
        self._tables: list[list[int]] = [[] for _ in range(shape.rows)]
        self.reserve(shape.rows - 1, 1)

    def pages_of(self, row: int) -> Sequence[int]:
        return self._tables[row]

    def reserve(self, row: int, tokens: int) -> None:
        """Take pages until so many tokens fit into a row; there have to be enough."""
        table = self._tables[row]
        while len(table) * PAGE_TOKENS < tokens:
            table.append(self.pages.take())

    def share(self, row: int, pages: Sequence[int]) -> None:
        """Go on in a row with pages that another job has filled."""
        self.pages.hold(pages)
        self._tables[row] += pages

    def move(self, source: int, target: int, length: int, target_length: int) -> None:
        """As `KvCache.move`."""
        self.release(target, target_length)
        self._tables[target], self._tables[source] = self._tables[source], []

    def swap(self, first: int, first_length: int, second: int, second_length: int) -> None:
        """As `KvCache.swap`."""
        tables = self._tables
        tables[first], tables[second] = tables[second], tables[first]

    def release(self, row: int, length: int) -> None:
        """As `KvCache.release`, but what the pages held stays in them. No job reads beyond what it
        has written: the kernel is told the length of each row."""
        self.pages.give_back(self._tables[row])
        self._tables[row] = []

    def block_table(self, rows: Sequence[int]) -> Tensor:
        """The pages of some rows, int32 [len(rows), most pages of one of them]."""
        tables = [self._tables[row] for row in rows]
        width = max(map(len, tables))
        padded = [table + [0] * (width - len(table)) for table in tables]
        return torch.tensor(padded, dtype=torch.int32, device=self.device)

    def places(self, rows: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Where in the pool's pages, laid out one after another, tokens of these rows stand."""
        tables = self._tables
        found = [
            tables[row][position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
            for row, position in zip(rows, positions, strict=True)
        ]
        return torch.tensor(found, device=self.device)
