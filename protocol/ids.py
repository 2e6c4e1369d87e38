"""Names of things: who (peer ids), which (ULIDs) and what exactly (sha256 digests).

A peer id is libp2p's text form of an Ed25519 public key, so it is also the account id: a party that
can sign for it owns it. ULIDs sort by time, which keeps database indexes append-mostly.
"""

import hashlib
import re
from functools import lru_cache
from typing import NewType

import base58

from protocol.errors import Code, RemoteProtocolError

PeerId = NewType("PeerId", str)
JobId = NewType("JobId", str)
LeaseId = NewType("LeaseId", str)
TransferId = NewType("TransferId", str)
Digest = NewType("Digest", str)

# Multihash "identity, 36 bytes" around libp2p's protobuf head for a 32-byte Ed25519 key.
_PEER_ID_HEAD = bytes.fromhex("002408011220")
_PUBLIC_KEY_BYTES = 32
# 38 bytes are 52 base58 digits; anything longer is not worth decoding.
_PEER_ID_CHARS_MAX = 56

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
_ULID_PATTERN = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")
_ULID_ENTROPY_BITS = 80
ULID_ENTROPY_BYTES = _ULID_ENTROPY_BITS // 8
_ULID_CHARS = 26
_ULID_TIME_CHARS = 10


# Every envelope that is opened names its signer so; the base58 costs a tenth of its signature.
@lru_cache(maxsize=4096)
def peer_id_from_public_key(public_key: bytes) -> PeerId:
    """The peer id of a raw 32-byte Ed25519 public key."""
    if len(public_key) != _PUBLIC_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has 32 bytes, not {len(public_key)}")
    return PeerId(base58.b58encode(_PEER_ID_HEAD + public_key).decode())


def public_key_from_peer_id(peer_id: PeerId) -> bytes:
    """The raw 32-byte public key inside a peer id. Raises RemoteProtocolError (MALFORMED)."""
    data = b""
    if len(peer_id) <= _PEER_ID_CHARS_MAX:
        try:
            data = base58.b58decode(peer_id)
        except ValueError:
            data = b""
    if len(data) != len(_PEER_ID_HEAD) + _PUBLIC_KEY_BYTES or not data.startswith(_PEER_ID_HEAD):
        raise RemoteProtocolError(
            f"{peer_id[:_PEER_ID_CHARS_MAX]!r} is not an Ed25519 peer id", code=Code.MALFORMED
        )
    return data[len(_PEER_ID_HEAD) :]


def parse_peer_id(text: str) -> PeerId:
    """Raises RemoteProtocolError (MALFORMED) unless `text` is the peer id of an Ed25519 key."""
    public_key_from_peer_id(PeerId(text))
    return PeerId(text)


def new_ulid(now_ms: int, entropy: bytes) -> str:
    """A 26-character ULID: 48 bits of time, 80 bits of `entropy` (10 bytes).

    Source: the ULID specification (github.com/ulid/spec).
    """
    if len(entropy) != ULID_ENTROPY_BYTES:
        raise ValueError(f"a ULID takes {ULID_ENTROPY_BYTES} bytes of entropy, not {len(entropy)}")
    value = (now_ms << _ULID_ENTROPY_BITS) | int.from_bytes(entropy)
    return _digits(value, pairs=_ULID_CHARS // 2)


def derive_ulid(base: str, purpose: str) -> str:
    """A ULID that anyone can recompute: the time of `base`, and a tail hashed with `purpose`.

    A retry of "capture lease L" therefore always names the same transfer.
    """
    tail = hashlib.sha256(f"{purpose}\0{base}".encode()).digest()[:ULID_ENTROPY_BYTES]
    tail_pairs = (_ULID_CHARS - _ULID_TIME_CHARS) // 2
    return base[:_ULID_TIME_CHARS] + _digits(int.from_bytes(tail), pairs=tail_pairs)


def _digits(value: int, *, pairs: int) -> str:
    """In base 32, two digits at a time: a job derives eight ids."""
    return "".join([_PAIRS[(value >> 10 * place) & 1023] for place in range(pairs - 1, -1, -1)])


def ulid_time_ms(ulid: str) -> int:
    """The milliseconds since 1970 that a parsed ULID carries."""
    value = 0
    for char in ulid[:_ULID_TIME_CHARS]:
        value = value * 32 + _CROCKFORD.index(char)
    return value


def parse_ulid(text: str) -> str:
    """Raises RemoteProtocolError (MALFORMED) unless `text` is a canonical (upper case) ULID."""
    if not _ULID_PATTERN.fullmatch(text):
        raise RemoteProtocolError(f"{text[:_ULID_CHARS]!r} is not a ULID", code=Code.MALFORMED)
    return text


def sha256_digest(data: bytes) -> Digest:
    """The content address of `data`, in lower-case hex."""
    return Digest(hashlib.sha256(data).hexdigest())


def is_digest(text: str) -> bool:
    return _DIGEST_PATTERN.fullmatch(text) is not None
