"""What goes into a job and what comes out of it: the bytes behind `payload_digest`.

Digests of payloads and outputs are salted: a coordinator sees the digests, and could guess a short
text from one. The salt is the client's, and travels to the node with the payload.

The client encodes an input, the sandboxed worker decodes it: a node's trusted parent only checks
its size and digest. Bounds here are the wire's; a model's own (context length) are its engine's.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.fields import check
from protocol.generation import SEED_MAX, GenerationInput, check_token_ids
from protocol.ids import Digest
from protocol.limits import (
    DIMENSIONS_MAX,
    EMBEDDING_TEXTS_MAX,
    LABELS_MAX,
    NAME_CHARS_MAX,
    PAYLOAD_BYTES_MAX,
    SALT_BYTES,
)
from protocol.tensors import TensorInput


@dataclass(frozen=True, slots=True)
class EmbeddingInput:
    """Texts to embed. With a `query`, for models with `Feature.PAIR_SCORES`, each text is read
    together with it, and its vector is one number: how well the text answers the query, from 0 to 1
    if `normalize` is set and as the model's head gives it else."""

    texts: tuple[str, ...]
    normalize: bool = True
    query: str | None = None

    def __post_init__(self) -> None:
        check(self.query != "", "the query is empty")
        check(0 < len(self.texts) <= EMBEDDING_TEXTS_MAX, "no texts, or too many")
        check(all(self.texts), "a text is empty")


@dataclass(frozen=True, slots=True)
class ImageInput:
    """A JPEG, PNG or WebP file, of which the first picture counts; the answer has the `top_k`
    likeliest labels."""

    image: bytes
    top_k: int = 5

    def __post_init__(self) -> None:
        check(0 < len(self.image) <= PAYLOAD_BYTES_MAX, "the image's size is out of range")
        check(0 < self.top_k <= LABELS_MAX, "top_k is out of range")


JobInput = GenerationInput | EmbeddingInput | ImageInput | TensorInput


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer: text for people, token ids to meter and to resume with, `data`
    for tasks that answer in bytes, and for a generation's scores (`protocol.generation`)."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    data: bytes = b""

    def __post_init__(self) -> None:
        check_token_ids(self.token_ids)


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """One vector per text, in order: `dimensions` little-endian float32 each. `tokens` says how
    many each text had, which add up to what is billed; a worker may leave it out."""

    dimensions: int
    vectors: tuple[bytes, ...]
    tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check(0 < self.dimensions <= DIMENSIONS_MAX, "the dimensions are out of range")
        check(len(self.vectors) <= EMBEDDING_TEXTS_MAX, "too many vectors")
        check(all(len(v) == 4 * self.dimensions for v in self.vectors), "a vector has a bad size")
        check(len(self.tokens) in (0, len(self.vectors)), "there is not one count for each text")
        check(all(count >= 0 for count in self.tokens), "a text has a negative number of tokens")


@dataclass(frozen=True, slots=True)
class Label:
    label: str
    score: float

    def __post_init__(self) -> None:
        check(len(self.label) <= NAME_CHARS_MAX, "a label is too long")


@dataclass(frozen=True, slots=True)
class ClassificationOutput:
    """The likeliest labels first; scores are probabilities."""

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        check(len(self.labels) <= LABELS_MAX, "too many labels")


def derive_seed(request_digest: Digest) -> int:
    """What sampling starts from where the client names no seed: fixed by the client's signed
    request, so that the node cannot choose it and anyone can draw again."""
    digest = hashlib.sha256(b"capa/1/seed\0" + bytes.fromhex(request_digest)).digest()
    return int.from_bytes(digest[:8], "big") & SEED_MAX


def tokens_digest(sequences: Sequence[Sequence[int]], *, prefix_tokens: int = 0) -> Digest:
    """Of the token ids that an input became: one sequence per text, each after its length, all as
    big-endian u32. The last `prefix_tokens` of a prompt were answered elsewhere before.

    It tells a wrong template or tokenizer from a wrong model. Receipts carry it salted
    (`salted_digest`), because a short prompt could be guessed from it.
    """
    digest = hashlib.sha256(b"capa/1/input\0" + struct.pack(">I", prefix_tokens))
    for tokens in sequences:
        digest.update(struct.pack(f">{len(tokens) + 1}I", len(tokens), *tokens))
    return Digest(digest.hexdigest())


@dataclass(frozen=True, slots=True)
class SaltedPayload:
    """A job's input as its client keeps it, through all attempts."""

    data: bytes
    salt: bytes

    def __post_init__(self) -> None:
        check(len(self.salt) == SALT_BYTES, f"a salt has {SALT_BYTES} bytes")

    @property
    def digest(self) -> Digest:
        return salted_digest(self.data, self.salt)


def salted_digest(payload: bytes | bytearray, salt: bytes) -> Digest:
    """sha256(salt + payload): what a job request pins."""
    digest = hashlib.sha256(salt)
    digest.update(payload)
    return Digest(digest.hexdigest())


# Chunks, tokens, characters and bytes together: some forty chunks of a token each.
_HASHED_AT_ONCE = 256


class OutputDigest:
    """A running digest of an answer: equal on both sides however it was cut into chunks.

    sha256(salt + sha256(token ids as big-endian u32) + sha256(text as UTF-8) + sha256(data)).
    """

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._tokens = hashlib.sha256()
        self._text = hashlib.sha256()
        self._data = hashlib.sha256()
        # To hash tokens one by one costs more than to relay them.
        self._waiting: list[Chunk] = []
        self._waiting_size = 0

    def add(self, chunk: Chunk) -> None:
        self._waiting.append(chunk)
        self._waiting_size += 1 + len(chunk.token_ids) + len(chunk.text) + len(chunk.data)
        if self._waiting_size > _HASHED_AT_ONCE:
            self._hash_waiting()

    def _hash_waiting(self) -> None:
        waiting, self._waiting, self._waiting_size = self._waiting, [], 0
        token_ids = [token_id for chunk in waiting for token_id in chunk.token_ids]
        self._tokens.update(struct.pack(f">{len(token_ids)}I", *token_ids))
        self._text.update("".join([chunk.text for chunk in waiting]).encode())
        self._data.update(b"".join([chunk.data for chunk in waiting]))

    def hexdigest(self) -> Digest:
        self._hash_waiting()
        parts = (self._salt, self._tokens.digest(), self._text.digest(), self._data.digest())
        return Digest(hashlib.sha256(b"".join(parts)).hexdigest())
