"""Keys that the coordinator keeps for users who only hold an API key, sealed under its own key.

ChaCha20-Poly1305 (RFC 8439) with a key derived by HKDF (RFC 5869) from the coordinator's seed; the
account is authenticated with it, so that sealed keys cannot be swapped between rows. A copy of the
database alone signs nothing.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from coordinator.errors import CoordinatorError
from protocol.clock import Entropy
from protocol.ids import PeerId
from protocol.keys import SigningKey

_KEYS = b"capacloud custodial keys 1"
_NONCE_BYTES = 12


class VaultError(CoordinatorError):
    """A custodial key cannot be opened: the coordinator's key is not the one that sealed it."""


class Seal:
    """Seals bytes under a coordinator's key, for one purpose. `context` says what they are, so that
    sealed bytes cannot be put in the place of others."""

    def __init__(self, key: SigningKey, purpose: bytes) -> None:
        derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose)
        self._cipher = ChaCha20Poly1305(derive.derive(key.seed()))

    def close(self, data: bytes, context: bytes, entropy: Entropy) -> bytes:
        """A fresh nonce and the sealed bytes."""
        nonce = entropy(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, context)

    def open(self, sealed: bytes, context: bytes) -> bytes | None:
        """None if they were sealed by another key or as something else, or were changed."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            return None


class Vault:
    """Seals and opens custodial keys with a coordinator's own key."""

    def __init__(self, key: SigningKey) -> None:
        self._seal = Seal(key, _KEYS)

    def seal(self, custodial: SigningKey, entropy: Entropy) -> bytes:
        """A fresh nonce and the sealed seed."""
        return self._seal.close(custodial.seed(), custodial.peer_id.encode(), entropy)

    def open(self, account: PeerId, sealed: bytes) -> SigningKey:
        """The account's key. Raises VaultError."""
        seed = self._seal.open(sealed, account.encode())
        if seed is None:
            raise VaultError(
                f"the key of account {account} was sealed by another coordinator key: restore that "
                "key file"
            )
        return SigningKey(seed)
