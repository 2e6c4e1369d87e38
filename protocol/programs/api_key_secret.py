"""The secret of an API key: how one is made, recognized in a list, and looked up.

A secret is shown once, when it is made; what is stored is its hash. Where keys are kept, with
which budgets, is a matter of each program.
"""

import base64
import hashlib
from dataclasses import dataclass, field

from protocol.clock import Entropy

# Says whose key it is to a person who finds one in a log, and to scanners of leaked secrets.
_MARK = "sk-capa-"
_BYTES = 32
# Enough to recognize a key in a list, too little to be of use: 238 random bits remain.
_PREFIX_CHARS = len(_MARK) + 3


@dataclass(frozen=True, slots=True)
class ApiKeySecret:
    """A new secret. `prefix` may be shown at any time."""

    text: str = field(repr=False)

    @classmethod
    def new(cls, entropy: Entropy) -> "ApiKeySecret":
        return cls(_MARK + base64.urlsafe_b64encode(entropy(_BYTES)).rstrip(b"=").decode())

    @property
    def prefix(self) -> str:
        return self.text[:_PREFIX_CHARS]


def hash_secret(text: str) -> bytes:
    """What is stored of a secret, 32 bytes. It has 256 random bits, so a fast hash is as good as a
    slow one. A header may hold anything: what is no valid text hashes to no key."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
