"""Beginnings of prompts that were prefilled before, kept for jobs that begin alike.

On a CPU a job's keys and values stand in a row of its own, which attention reads in place; pages of
what is prefilled are copied to a store beside the rows, and from there to the rows of later jobs: a
page takes a hundredth of the time to copy that it takes to prefill. `docs/decisions` 0018 has the
measurements.

A page is one prefill chunk, cut at the same places in every job, so a job that takes pages from
here goes on bit for bit as if it had computed them. What was decoded is not kept: prefilling it, as
a later job would without this cache, gives other bits. Jobs that score their prompt need what comes
out of every token of it, and take no part.
"""

from collections.abc import Sequence

from torch import Tensor

from capanode.engines.generation import Generation
from capanode.engines.kv_cache import KvCache
from capanode.engines.lazy_memory import LazyMemory
from capanode.engines.page_keys import page_keys
from capanode.engines.page_pool import PagePool


class PrefixCache:
    """Takes the memory that running jobs leave: see `fit`."""

    def __init__(self, cache: KvCache, *, page_tokens: int, pages: int) -> None:
        shape = cache.shape
        self._cache = cache
        self._page_tokens = page_tokens
        self._pool = PagePool(pages)
        self._pages_max = pages
        self._memory = LazyMemory(
            (pages, shape.layers, 2 * shape.kv_heads, page_tokens, shape.head_dim),
            shape.dtype,
            cache.device,
            block_bytes=page_tokens * shape.token_bytes,
        )

    def load(self, job: Generation) -> None:
        """Go on filling a job's row with pages that follow what it holds, as far as there are any.
        The last token is left to compute: the next one is drawn from what comes out of it."""
        start, ends = divmod(job.cached, self._page_tokens)
        if ends:
            return
        last = (len(job.tokens) - 1) // self._page_tokens
        pages = self._pool.find(self._keys_of(job)[start:last])
        for index, page in enumerate(pages, start):
            self._row_page(job, index).copy_(self._memory.tensor[page])
        self._touch(pages)
        job.cached += len(pages) * self._page_tokens

    def next_key(self, job: Generation) -> bytes | None:
        """What stands for the page that a job computes next; None if it is not one to keep."""
        keys = self._keys_of(job)
        index = job.cached // self._page_tokens
        return keys[index] if index < len(keys) else None

    def save(self, job: Generation, end: int) -> None:
        """Keep the page of a job's row that ends after `end` tokens, if one of the prompt does."""
        index, rest = divmod(end, self._page_tokens)
        keys = self._keys_of(job)[:index]
        if rest or len(keys) < index or not self._pages_max:
            return
        if keys[-1] not in self._pool:
            if self._pool.kept_count >= self._pages_max:
                self._pool.evict()
            page = self._pool.take()
            self._memory.tensor[page].copy_(self._row_page(job, index - 1))
            self._pool.name(page, keys[-1])
            self._pool.give_back([page])
        self._touch(self._pool.find(keys))

    def leave(self, job: Generation) -> None:
        """A job gives its row up: what is kept of it was copied before."""

    def fit(self, tokens: int) -> None:
        """Keep no more than so many tokens: running jobs need the rest of the memory."""
        self._pages_max = max(tokens, 0) // self._page_tokens
        while self._pool.kept_count > self._pages_max:
            page = self._pool.evict()
            if self._memory.can_give_back:
                self._memory.give_back(page)

    def _touch(self, pages: Sequence[int]) -> None:
        """They are the last ones to go, the first of them after those behind it."""
        self._pool.hold(pages)
        self._pool.give_back(pages)

    def _keys_of(self, job: Generation) -> list[bytes]:
        if job.page_keys is None:
            takes_part = job.prompt_logprobs is None
            prompt = job.tokens[: job.prompt_count] if takes_part else []
            job.page_keys = list(page_keys(prompt, job.cache_salt, page_tokens=self._page_tokens))
        return job.page_keys

    def _row_page(self, job: Generation, index: int) -> Tensor:
        start = index * self._page_tokens
        return self._cache.tokens(job.row, range(start, start + self._page_tokens))
