"""The noise of the sampler `gumbel-1`: a number for each token that depends on nothing but the
job's seed, the token's place in the answer and its id. docs/protocol.md specifies it.

Randomness so has no state: a job draws the same tokens in every batch, and an answer that continues
elsewhere goes on with the draws that it would have had.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

_DOMAIN = b"capa/1/gumbel\0"
_LAST_FACTOR = 0x2C1B3C6D
_ROWS_AT_ONCE = 2


def row_key(seed: int, index: int) -> tuple[int, int]:
    """Two words of 32 bits for one draw; the second is odd."""
    text = _DOMAIN + seed.to_bytes(8, "big") + index.to_bytes(8, "big")
    digest = hashlib.sha256(text).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big") | 1


def row_key_words(seed: int, index: int) -> tuple[int, int]:
    """The words of `row_key` as an int32 holds them."""
    first, second = row_key(seed, index)
    return _signed(first), _signed(second)


class RowNoise:
    """The noise of several rows, each with its own seed and index."""

    def __init__(self, seeds: Sequence[int], indices: Sequence[int], device: torch.device) -> None:
        keys = list(map(row_key_words, seeds, indices))
        self._keys = torch.tensor(keys, dtype=torch.int32).to(device)

    @classmethod
    def of_keys(cls, keys: Tensor) -> "RowNoise":
        """For a tensor of keys, [n, 2], that may change: see `row_key_words`."""
        noise = cls([], [], keys.device)
        noise._keys = keys
        return noise

    def hashes(self, tokens: Tensor, vocab: int) -> Tensor:
        """Those of `tokens` [n, k], each below `vocab`, as int32: the hash less 2³¹, so that it
        sorts alike."""
        mixed = _mixed_tokens(vocab, self._keys.device)[tokens]
        return _finish(mixed, self._keys[:, :1], self._keys[:, 1:])

    def all_hashes(self, vocab: int) -> Tensor:
        """Those of every token, [n, vocab]."""
        return _finish(
            _mixed_tokens(vocab, self._keys.device), self._keys[:, :1], self._keys[:, 1:]
        )

    def column_minima(self, vocab: int, block: int) -> Tensor:
        """The least hash of each column, if the vocabulary is a table of `block` rows. A few jobs
        at a time, so that what is computed stays in the processor's cache."""
        mixed, count = _mixed_tokens(vocab, self._keys.device), len(self._keys)
        minima = torch.empty((count, vocab // block), dtype=torch.int32, device=self._keys.device)
        for start in range(0, count, _ROWS_AT_ONCE):
            keys = self._keys[start : start + _ROWS_AT_ONCE]
            hashes = _finish(mixed, keys[:, :1], keys[:, 1:])
            minima[start : start + _ROWS_AT_ONCE] = hashes.view(len(keys), block, -1).amin(1)
        return minima


def gumbel(hash_less: int) -> float:
    """The noise: −ln(−ln(1 − v)) of v = (hash + ½) / 2³²."""
    return -math.log(-math.log1p(-(hash_less + 2.0**31 + 0.5) * 2.0**-32))


def rough_gumbel(hashes: Tensor) -> Tensor:
    """The same to about 10⁻⁴ where it is positive, much faster: to see which tokens are worth an
    exact look."""
    # Added as integers: a small hash, which is great noise, would lose its digits otherwise.
    shifted = hashes.long().add_(2**31).float().add_(0.5)
    return shifted.mul_(-(2.0**-32)).clamp_(min=2.0**-24 - 1).log1p_().neg_().log_().neg_()


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


@cache
def _mixed_tokens(vocab: int, device: torch.device) -> Tensor:
    return _mix(torch.arange(vocab, device=device))


def _mix(tokens: Tensor) -> Tensor:
    """Token ids as 32 bits that have nothing in common: murmur3's finalizer."""
    mixed = tokens.to(torch.int32)
    mixed = mixed ^ ((mixed >> 16) & 0xFFFF)
    mixed = mixed * _signed(0x85EBCA6B)
    mixed = mixed ^ ((mixed >> 13) & 0x7FFFF)
    mixed = mixed * _signed(0xC2B2AE35)
    return mixed ^ ((mixed >> 16) & 0xFFFF)


def _finish(mixed: Tensor, first: Tensor, second: Tensor) -> Tensor:
    hashes = torch.bitwise_xor(mixed, first).mul_(second)
    hashes.bitwise_xor_((hashes >> 15).bitwise_and_(0x1FFFF))
    return hashes.mul_(_LAST_FACTOR)
