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

_PURPOSE = b"capacloud custodial keys 1"
_NONCE_BYTES = 12


class VaultError(CoordinatorError):
    """A custodial key cannot be opened: the coordinator's key is not the one that sealed it."""


class Vault:
    """Seals and opens custodial keys with a coordinator's own key."""

    def __init__(self, key: SigningKey) -> None:
        derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE)
        self._cipher = ChaCha20Poly1305(derive.derive(key.seed()))

    def seal(self, custodial: SigningKey, entropy: Entropy) -> bytes:
        """A fresh nonce and the sealed seed."""
        nonce = entropy(_NONCE_BYTES)
        account = custodial.peer_id.encode()
        return nonce + self._cipher.encrypt(nonce, custodial.seed(), account)

    def open(self, account: PeerId, sealed: bytes) -> SigningKey:
        """The account's key. Raises VaultError."""
        nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            seed = self._cipher.decrypt(nonce, ciphertext, account.encode())
        except (InvalidTag, ValueError):
            raise VaultError(
                f"the key of account {account} was sealed by another coordinator key: restore that "
                "key file"
            ) from None
        return SigningKey(seed)
