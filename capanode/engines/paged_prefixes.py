"""Beginnings that jobs share in a `PagedCache`: a job lists the pages that others have filled.

As `PrefixCache`, but nothing is copied, and answers are kept, too: on a GPU decoding and prefilling
promise no bits, so that the next turn of a conversation goes on behind the last answer.
"""

from capanode.engines.generation import Generation
from capanode.engines.page_keys import page_keys
from capanode.engines.paged_cache import PAGE_TOKENS, PagedCache


class PagedPrefixes:
    """Names the pages of jobs, and finds them for others."""

    def __init__(self, cache: PagedCache) -> None:
        self._cache = cache

    def load(self, job: Generation) -> None:
        """As `PrefixCache.load`."""
        start, rest = divmod(job.cached, PAGE_TOKENS)
        if rest:
            return
        last = (len(job.tokens) - 1) // PAGE_TOKENS
        pages = self._cache.pages.find(self._keys_of(job)[start:last])
        self._cache.share(job.row, pages)
        job.cached += len(pages) * PAGE_TOKENS

    def next_key(self, job: Generation) -> bytes | None:
        """As `PrefixCache.next_key`."""
        keys, index = self._keys_of(job), job.cached // PAGE_TOKENS
        return keys[index] if index < len(keys) else None

    def save(self, job: Generation, end: int) -> None:
        """Let others find the pages that are full after `end` tokens of a job's row."""
        full = end // PAGE_TOKENS
        pages = self._cache.pages_of(job.row)
        for page, key in zip(pages[:full], self._keys_of(job)[:full], strict=False):
            self._cache.pages.name(page, key)

    def leave(self, job: Generation) -> None:
        """A job gives its row up: what it has answered stays to be found, too."""
        job.page_keys = None
        self.save(job, job.cached)

    def fit(self, tokens: int) -> None:
        """Nothing to do: what is kept is in pages that jobs may take."""

    def _keys_of(self, job: Generation) -> list[bytes]:
        if job.page_keys is None:
            takes_part = job.prompt_logprobs is None
            tokens = job.tokens if takes_part else []
            job.page_keys = list(page_keys(tokens, job.cache_salt, page_tokens=PAGE_TOKENS))
        return job.page_keys
