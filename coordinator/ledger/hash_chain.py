"""The hash chain of the books: each transfer's hash covers it and all transfers before it.

    hash(0) = sha256("capa/1/ledger")
    hash(n) = sha256(hash(n - 1) || msgpack [sequence, created_at_ns, id, debit, credit,
                     amount_nano, kind, code, pending_id, timeout_at_ms, job_id])

So one changed, missing or added transfer changes every hash after it, and a `LedgerHead`, which a
coordinator signs now and then, vouches for everything up to its sequence.
"""

import hashlib
from dataclasses import dataclass

import msgpack

from coordinator.ledger.transfers import Transfer
from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId
from protocol.keys import SigningKey, verify

GENESIS = hashlib.sha256(b"capa/1/ledger").digest()

_HEAD_DOMAIN = b"capa/1/ledger_head\0"

_sha256 = hashlib.sha256
# One object instead of one for each transfer: half the cost of `msgpack.packb`.
_pack = msgpack.Packer().pack


def next_hash(previous: bytes, sequence: int, created_at_ns: int, transfer: Transfer) -> bytes:
    """The hash of a transfer that follows the one whose hash is `previous`."""
    return _sha256(previous + _pack((sequence, created_at_ns, *transfer))).digest()


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """What `signer` signed: the transfers up to `sequence` have this hash."""

    sequence: int
    chain_hash: bytes
    signed_at_ms: int
    signer: PeerId
    signature: bytes

    @property
    def is_signed(self) -> bool:
        """Whether the signature is that of `signer`, over these very values."""
        content = _content(self.sequence, self.chain_hash, self.signed_at_ms)
        try:
            verify(self.signer, content, self.signature)
        except RemoteProtocolError:
            return False
        return True


def sign_head(
    key: SigningKey, *, sequence: int, chain_hash: bytes, signed_at_ms: int
) -> LedgerHead:
    signature = key.sign(_content(sequence, chain_hash, signed_at_ms))
    return LedgerHead(sequence, chain_hash, signed_at_ms, key.peer_id, signature)


def _content(sequence: int, chain_hash: bytes, signed_at_ms: int) -> bytes:
    return _HEAD_DOMAIN + bytes(msgpack.packb([sequence, chain_hash, signed_at_ms]))
