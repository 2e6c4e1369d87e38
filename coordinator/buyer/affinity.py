"""How an input begins, as keys that say nothing to others: a request carries them, so that a
conversation goes back to the node that keeps its cache.

The hashes are keyed with a secret of the buyer, so that others cannot try guesses of a text.
"""

import hmac
from collections.abc import Iterator, Sequence

from protocol.codec import encode
from protocol.generation import ChatMessage, GenerationInput
from protocol.keys import SigningKey
from protocol.limits import AFFINITY_BYTES, KIB
from protocol.payload import JobInput

_PURPOSE = "affinity"
# A shorter text is read again faster than a node is chosen for it.
CACHED_CHARS_MIN = 1_024
# A longer beginning is told by its two ends and its size: to hash all of a document takes as long
# as to parse it, and two that differ in the middle only cost each other a cache.
_END_BYTES = 8 * KIB


def affinity_of(job_input: JobInput, session: str, key: SigningKey) -> tuple[bytes, ...]:
    """The keys of an input, longest beginning first; none for one that has no beginning in common
    with others. A session's name stands for all of them."""
    if session:
        return (_keyed(key, b"session", session.encode()),)
    if not isinstance(job_input, GenerationInput):
        return ()
    return tuple(_keyed(key, b"messages", beginning) for beginning in _beginnings(job_input))


def _beginnings(job_input: GenerationInput) -> Iterator[bytes]:
    messages = job_input.messages
    first_user = next((i for i, m in enumerate(messages) if m.role == "user"), None)
    if first_user is None:
        return
    yield _encoded(messages[: first_user + 1])
    system = messages[:first_user]
    if sum(len(message.content) for message in system) >= CACHED_CHARS_MIN:
        yield _encoded(system)


def _encoded(messages: Sequence[ChatMessage]) -> bytes:
    return b"".join(map(encode, messages))


def _keyed(key: SigningKey, kind: bytes, beginning: bytes) -> bytes:
    if len(beginning) > 2 * _END_BYTES:
        ends = beginning[:_END_BYTES] + beginning[-_END_BYTES:]
        beginning = b"%d:%b" % (len(beginning), ends)
    secret = key.derive_secret(_PURPOSE)
    return hmac.digest(secret, kind + b"\0" + beginning, "sha256")[:AFFINITY_BYTES]
