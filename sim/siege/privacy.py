"""E1: what can be guessed from the digests that a coordinator keeps."""

import hashlib
import re
from collections.abc import Iterator, Sequence

import trio

from protocol.codec import encode
from protocol.generation import GenerationInput
from protocol.limits import SALT_BYTES
from protocol.payload import Chunk
from sim.siege.attack import Attack, AttackResult
from sim.siege.books import SiegeBooks
from sim.siege.ground import Ground
from sim.siege.peer import open_peer
from sim.siege.staged_job import StagedJob
from sim.siege.staged_node import StagedNode, staged

# What a classifier may say in one token, and whom it may be asked about: the attacker knows both.
_WORDS = ("yes", "no", "positive", "negative", "unknown")
_PROMPTS = tuple(f"Is patient {number} positive?" for number in range(5))
_SECRET_WORD = 2
_SECRET_PROMPT = 3
_MODEL = "e1"

# Everything that a coordinator keeps of a job as it was signed.
_KEPT = (
    "SELECT request FROM jobs WHERE client = ?",
    "SELECT envelope FROM leases WHERE client = ?",
    "SELECT receipt FROM receipts WHERE client = ?",
    "SELECT acceptance FROM receipts WHERE client = ?",
)


async def digest_guess(ground: Ground) -> AttackResult:
    """The coordinator tries every short answer and every likely prompt against the digests that it
    keeps.

    As salt it tries nothing, zeros, and every sixteen bytes that stand anywhere in what it keeps.
    """

    async def classify(job: StagedJob) -> None:
        job.accept()
        await job.say(Chunk((_SECRET_WORD,), _WORDS[_SECRET_WORD]))
        await job.end(job.sign_said())

    key = await ground.books.open_own()
    node = StagedNode(_MODEL, classify)
    async with staged(ground.endpoint, node), open_peer(ground.endpoint, key) as peer:
        await peer.buy(_MODEL, _input(_PROMPTS[_SECRET_PROMPT]))
        await ground.books.wait_no_holds(key.peer_id)
    kept = _kept_of(ground.books, key.peer_id)
    unsalted = [hashlib.sha256(each).hexdigest().encode() for each in _secrets().values()]
    control, _ = await trio.to_thread.run_sync(_guess, unsalted)
    found, guesses = await trio.to_thread.run_sync(_guess, kept)
    return AttackResult(
        held=len(control) == len(unsalted) and not found and len(kept) >= len(_KEPT),
        honest_before=f"without a salt these are read: {', '.join(sorted(control))}",
        honest_under=f"{', '.join(sorted(found)) or 'nothing'} is read with {guesses:,} guesses",
    )


def _input(prompt: str) -> GenerationInput:
    return GenerationInput(max_tokens=1, prompt=prompt, temperature=0.0)


def _secrets() -> dict[str, bytes]:
    """The two things that really were said, as `_candidates` has them."""
    return {
        name: data
        for name, data in _candidates()
        if name in (_WORDS[_SECRET_WORD], _PROMPTS[_SECRET_PROMPT])
    }


def _candidates() -> list[tuple[str, bytes]]:
    """What was perhaps said, and the bytes that its salt is put in front of."""
    answers = [(word, _inner_digest(Chunk((id_,), word))) for id_, word in enumerate(_WORDS)]
    return answers + [(prompt, encode(_input(prompt))) for prompt in _PROMPTS]


def _inner_digest(chunk: Chunk) -> bytes:
    """See `OutputDigest`."""
    tokens = b"".join(token.to_bytes(4, "big") for token in chunk.token_ids)
    parts = (tokens, chunk.text.encode(), chunk.data)
    return b"".join(hashlib.sha256(part).digest() for part in parts)


def _kept_of(books: SiegeBooks, client: str) -> list[bytes]:
    found = [row[0] for query in _KEPT for row in books.rows(query, client)]
    return [bytes(each) for each in found if each is not None]


def _guess(kept: Sequence[bytes]) -> tuple[set[str], int]:
    """The candidates whose digests stand in what is kept, and how many were tried."""
    digests = set(_DIGEST.findall(b"\0".join(kept)))
    found, guesses = set[str](), 0
    candidates = _candidates()
    for salt in _salts(kept):
        for name, data in candidates:
            guesses += 1
            if hashlib.sha256(salt + data).hexdigest().encode() in digests:
                found.add(name)
    return found, guesses


def _salts(kept: Sequence[bytes]) -> Iterator[bytes]:
    yield b""
    yield bytes(SALT_BYTES)
    for each in kept:
        for start in range(len(each) - SALT_BYTES + 1):
            yield each[start : start + SALT_BYTES]


_DIGEST = re.compile(rb"[0-9a-f]{64}")

ATTACKS = (Attack("digest-guess", "E1", "guess short texts by their digests", digest_guess),)
