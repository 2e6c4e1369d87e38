"""Names for pages of tokens: two pages have one key only if all tokens up to their ends are alike.

A key is a hash over the key of the page before it, so that it stands for a whole beginning. The
first is hashed over a salt: jobs of different salts share nothing, and cannot learn from how fast
an answer comes what others have asked. One cache serves one model, so keys do not name it.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence

_KEY_BYTES = 16


def page_keys(tokens: Sequence[int], salt: str, *, page_tokens: int) -> Iterator[bytes]:
    """The keys of all full pages of `tokens`, in order."""
    key = hashlib.blake2b(salt.encode(), digest_size=_KEY_BYTES).digest()
    for end in range(page_tokens, len(tokens) + 1, page_tokens):
        page = array("i", tokens[end - page_tokens : end]).tobytes()
        key = hashlib.blake2b(key + page, digest_size=_KEY_BYTES).digest()
        yield key
