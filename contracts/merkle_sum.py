"""The Merkle sum tree of cumulative earnings: what `post_root` commits to and `claim` proves.

    leaf = keccak(0x00, operator, payee, cumulative)
    node = keccak(0x01, left hash, left sum, right hash, right sum)

A level of odd length is padded with an empty node (zero hash, zero sum). The contract's half of
this is `parts/sum_tree.vy`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import BadProofError
from contracts.keccak import keccak, keccak_rows
from contracts.units import Address, address_bytes

# What the contract takes: 24 siblings, sums of 128 bits.
DEPTH_MAX = 24
SUM_MAX = 2**128 - 1
EMPTY_ROOT = bytes(32)


@dataclass(frozen=True, slots=True)
class SumNode:
    hash: bytes
    sum: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """A payee's cumulative earnings with the evidence that they are under a root."""

    payee: Address
    cumulative: int
    index: int
    proof: tuple[SumNode, ...]


class SumTree:
    """All payees of one operator at one epoch, in the order of their addresses."""

    def __init__(self, operator: Address, earnings: Mapping[Address, int]) -> None:
        if len(earnings) > 1 << DEPTH_MAX:
            raise ValueError(f"{len(earnings)} payees are more than a tree of {DEPTH_MAX} levels")
        self.operator = operator
        self._payees = sorted(earnings, key=address_bytes)
        self._index = {payee: index for index, payee in enumerate(self._payees)}
        sums = [earnings[payee] for payee in self._payees]
        if any(not 0 <= amount <= SUM_MAX for amount in sums):
            raise ValueError("cumulative earnings lie between 0 and 2^128 - 1")
        self._hashes: list[NDArray[np.uint8]] = []
        self._sums: list[list[int]] = []
        if sums:
            self._grow(self._hash_leaves(sums), sums)

    @property
    def root(self) -> bytes:
        return self._hashes[-1][0].tobytes() if self._hashes else EMPTY_ROOT

    @property
    def total(self) -> int:
        return self._sums[-1][0] if self._sums else 0

    def __len__(self) -> int:
        return len(self._payees)

    def leaf(self, payee: Address) -> Leaf:
        """The payee's leaf with its proof. Raises KeyError if it has none."""
        index = self._index[payee]
        proof = []
        for level in range(len(self._sums) - 1):
            sibling = (index >> level) ^ 1
            proof.append(
                SumNode(self._hashes[level][sibling].tobytes(), self._sums[level][sibling])
            )
        return Leaf(payee, self._sums[0][index], index, tuple(proof))

    def _hash_leaves(self, sums: Sequence[int]) -> NDArray[np.uint8]:
        count = len(sums)
        rows = np.zeros((count, 73), np.uint8)
        rows[:, 1:21] = np.frombuffer(address_bytes(self.operator), np.uint8)
        payees = b"".join(map(address_bytes, self._payees))
        rows[:, 21:41] = np.frombuffer(payees, np.uint8).reshape(count, 20)
        rows[:, 41:] = _words(sums)
        return keccak_rows(rows)

    def _grow(self, hashes: NDArray[np.uint8], sums: list[int]) -> None:
        while len(sums) > 1:
            if len(sums) % 2:
                hashes = np.vstack([hashes, np.zeros((1, 32), np.uint8)])
                sums = [*sums, 0]
            self._hashes.append(hashes)
            self._sums.append(sums)
            rows = np.empty((len(sums) // 2, 129), np.uint8)
            rows[:, 0] = 1
            words = _words(sums)
            rows[:, 1:33], rows[:, 33:65] = hashes[0::2], words[0::2]
            rows[:, 65:97], rows[:, 97:129] = hashes[1::2], words[1::2]
            hashes = keccak_rows(rows)
            sums = [left + right for left, right in zip(sums[0::2], sums[1::2], strict=True)]
        self._hashes.append(hashes)
        self._sums.append(sums)


def check_leaf(root: bytes, total: int, operator: Address, leaf: Leaf) -> None:
    """Raises BadProofError unless the leaf is under (root, total), by the contract's rules."""
    amounts = (leaf.cumulative, *(node.sum for node in leaf.proof))
    if len(leaf.proof) > DEPTH_MAX or any(not 0 <= amount <= SUM_MAX for amount in amounts):
        raise BadProofError(f"the leaf of {leaf.payee} is not one that the contract takes")
    head = b"\0" + address_bytes(operator) + address_bytes(leaf.payee)
    digest, amount, path = keccak(head + leaf.cumulative.to_bytes(32)), leaf.cumulative, leaf.index
    for node in leaf.proof:
        ours = digest + amount.to_bytes(32)
        theirs = node.hash + node.sum.to_bytes(32)
        digest = keccak(b"\1" + (theirs + ours if path & 1 else ours + theirs))
        amount += node.sum
        path >>= 1
    if path != 0 or digest != root or amount != total:
        raise BadProofError(f"the leaf of {leaf.payee} ({leaf.cumulative}) is not under the root")


def _words(numbers: Sequence[int]) -> NDArray[np.uint8]:
    joined = b"".join(number.to_bytes(32) for number in numbers)
    return np.frombuffer(joined, np.uint8).reshape(len(numbers), 32)
