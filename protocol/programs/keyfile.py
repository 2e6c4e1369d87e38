"""Key files: a PEM with an unencrypted PKCS#8 Ed25519 key, readable by its owner only.

PEM is what `openssl pkey` and every other tool reads, so a key can be backed up and moved.
"""

import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from protocol.clock import Entropy
from protocol.errors import CapaError
from protocol.keys import SigningKey


class KeyFileError(CapaError):
    """A key file cannot be used; the message says what to do."""


def create_key_file(path: Path, entropy: Entropy = os.urandom) -> SigningKey:
    """Make a key and write it with mode 0600. Raises KeyFileError rather than overwrite a file."""
    key = SigningKey.generate(entropy)
    private = Ed25519PrivateKey.from_private_bytes(key.seed())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        # The mode is given at creation, so that others can never read the key, not for a moment.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeyFileError(f"{path} exists already: a key is never overwritten") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    return key


def load_key_file(path: Path) -> SigningKey:
    """Raises KeyFileError if the file is missing, readable by others, or not an Ed25519 key."""
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except FileNotFoundError:
        raise KeyFileError(f"there is no key at {path}: create one with `init`") from None
    except OSError as error:
        raise KeyFileError(f"cannot read the key at {path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(f"{path} can be read by others: run `chmod 600 {path}`")
    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise KeyFileError(f"{path} is not a PEM key file") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is not an Ed25519 key")
    return SigningKey(private.private_bytes_raw())


def load_or_create_key_file(path: Path, entropy: Entropy = os.urandom) -> SigningKey:
    """For programs that may make their own identity on first use."""
    return load_key_file(path) if path.exists() else create_key_file(path, entropy)
