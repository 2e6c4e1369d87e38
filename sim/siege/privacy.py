"""E1: what can be guessed from the digests that a coordinator keeps."""

import hashlib
from collections.abc import Iterator, Sequence

import trio

from protocol.limits import SALT_BYTES
from protocol.payload import Chunk, OutputDigest
from sim.siege.attack import Attack, AttackResult
from sim.siege.books import SiegeBooks
from sim.siege.ground import Ground
from sim.siege.peer import open_peer
from sim.siege.staged_job import StagedJob
from sim.siege.staged_node import StagedNode, staged

# What a classifier may say in one token; the attacker knows the list.
_WORDS = ("yes", "no", "positive", "negative", "unknown")
_SECRET = 2
_MODEL = "e1"

# Everything that a coordinator keeps of a job as it was signed.
_KEPT = (
    "SELECT request FROM jobs WHERE client = ?",
    "SELECT envelope FROM leases WHERE client = ?",
    "SELECT receipt FROM receipts WHERE client = ?",
    "SELECT acceptance FROM receipts WHERE client = ?",
)


async def digest_guess(ground: Ground) -> AttackResult:
    """The coordinator tries every short answer against the digest in its receipt.

    As salt it tries nothing, zeros, and every sixteen bytes that stand anywhere in what it keeps.
    """

    async def classify(job: StagedJob) -> None:
        job.accept()
        await job.say(_answer(_SECRET))
        await job.end(job.sign_said())

    key = await ground.books.open_own()
    node = StagedNode(_MODEL, classify)
    async with staged(ground.endpoint, node), open_peer(ground.endpoint, key) as peer:
        await peer.buy(_MODEL)
        await ground.books.wait_no_holds(key.peer_id)
    kept = _kept_of(ground.books, key.peer_id)
    unsalted = _digest(_SECRET, b"").encode()
    control, _ = await trio.to_thread.run_sync(_guess, [*kept, unsalted])
    found, guesses = await trio.to_thread.run_sync(_guess, kept)
    return AttackResult(
        held=control == _SECRET and found is None and len(kept) >= len(_KEPT),
        honest_before=f"an unsalted digest gives the answer {_WORDS[_SECRET]!r} away",
        honest_under=f"the answer is {'read' if found is not None else 'not found'} with "
        f"{guesses:,} guesses",
    )


def _answer(number: int) -> Chunk:
    return Chunk((number,), _WORDS[number])


def _digest(number: int, salt: bytes) -> str:
    digest = OutputDigest(salt)
    digest.add(_answer(number))
    return digest.hexdigest()


def _kept_of(books: SiegeBooks, client: str) -> list[bytes]:
    found = [row[0] for query in _KEPT for row in books.rows(query, client)]
    return [bytes(each) for each in found if each is not None]


def _guess(kept: Sequence[bytes]) -> tuple[int | None, int]:
    """The number of the word whose digest stands in what is kept, and how many were tried."""
    everything = b"\0".join(kept)
    guesses = 0
    inner = [_inner_digest(number) for number in range(len(_WORDS))]
    for salt in _salts(kept):
        for number, digests in enumerate(inner):
            guesses += 1
            if hashlib.sha256(salt + digests).hexdigest().encode() in everything:
                return number, guesses
    return None, guesses


def _inner_digest(number: int) -> bytes:
    """What the salt is put in front of; see `OutputDigest`."""
    chunk = _answer(number)
    tokens = b"".join(token.to_bytes(4, "big") for token in chunk.token_ids)
    parts = (tokens, chunk.text.encode(), chunk.data)
    return b"".join(hashlib.sha256(part).digest() for part in parts)


def _salts(kept: Sequence[bytes]) -> Iterator[bytes]:
    yield b""
    yield bytes(SALT_BYTES)
    for each in kept:
        for start in range(len(each) - SALT_BYTES + 1):
            yield each[start : start + SALT_BYTES]


ATTACKS = (Attack("digest-guess", "E1", "guess short answers by their digests", digest_guess),)
