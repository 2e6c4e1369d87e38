"""Ed25519 signing keys. One key is one party: its peer id is its account.

By libsodium, which py-libp2p brings along: a job costs its node three checks and two signatures;
a check takes 54 µs, where OpenSSL's takes 104, and a signature 21 instead of 33.
"""

import hmac
from collections.abc import Callable
from functools import lru_cache

from nacl import bindings as sodium
from nacl.exceptions import BadSignatureError

from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId, peer_id_from_public_key, public_key_from_peer_id

SEED_BYTES = 32
SIGNATURE_BYTES = 64


class SigningKey:
    """A private key. Its repr and pickles show nothing of the seed."""

    __slots__ = ("_private", "_seed", "peer_id", "public_key")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a key's seed has {SEED_BYTES} bytes, not {len(seed)}")
        self._seed = seed
        self.public_key, self._private = sodium.crypto_sign_seed_keypair(seed)
        self.peer_id: PeerId = peer_id_from_public_key(self.public_key)

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes]) -> "SigningKey":
        return cls(entropy(SEED_BYTES))

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `data` (RFC 8032)."""
        return sodium.crypto_sign(data, self._private)[:SIGNATURE_BYTES]

    def derive_secret(self, purpose: str) -> bytes:
        """32 bytes that only the key's owner can compute, other ones for every purpose."""
        return hmac.digest(self._seed, b"capa/1/secret\0" + purpose.encode(), "sha256")

    def seed(self) -> bytes:
        """The secret itself: for the key file and the transport's handshake only."""
        return self._seed

    def __repr__(self) -> str:
        return f"SigningKey({self.peer_id})"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not pickled")


def verify(peer_id: PeerId, data: bytes, signature: bytes) -> None:
    """Raises RemoteProtocolError (BAD_SIGNATURE) unless `peer_id` signed exactly `data`."""
    # What is checked is the two in a row: a signature of another length would move the border.
    if len(signature) == SIGNATURE_BYTES:
        try:
            sodium.crypto_sign_open(signature + data, _public_key(peer_id))
        except BadSignatureError:
            pass
        else:
            return
    raise RemoteProtocolError(f"the signature is not {peer_id}'s", code=Code.BAD_SIGNATURE)


# A market talks to the same few thousand parties all day; parsing a key costs a base58 division.
@lru_cache(maxsize=4096)
def _public_key(peer_id: PeerId) -> bytes:
    return public_key_from_peer_id(peer_id)
