"""One model's offers as columns, so that matching is arithmetic on vectors.

A table has one row per node. Rows move when another is removed (the last fills the gap), so nothing
outside may remember a row number across changes, and no decision may depend on the order of rows.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from protocol.features import Feature
from protocol.ids import PeerId
from protocol.pricing import PRICE_POSITIONS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Ties = NDArray[np.uint64]

# Rows of `values`. Prices are below 2^53, so a float64 holds them exactly.
PRICES = tuple(enumerate(PRICE_POSITIONS))
_NEXT = len(PRICES)
PREFILL_MS = _NEXT  # claimed, per input token, image or tensor element
DECODE_MS = _NEXT + 1  # claimed, per output token
CONTEXT = _NEXT + 2
SLOTS = _NEXT + 3
ROOM = _NEXT + 4  # slots and queue together
BUSY = _NEXT + 5  # jobs there now, as far as we know
RTT_MS = _NEXT + 6
EXPIRES_MS = _NEXT + 7
BATCH_SHARE = _NEXT + 8  # of its prices that a batch job pays
LIVE = _NEXT + 9  # those of BUSY that do not give way to a job that is not of a batch
LOAD_MS = _NEXT + 10  # claimed, until a cold model is loaded; 0 for one that is
VALUES = _NEXT + 11

# Rows of `codes`.
TASK = 0
TIER = 1
REGION = 2
QUANTIZATION = 3
COLLECTS = 4
FLAGS = 5
STANDING = 6  # the node's row in the reputation matrix
MACHINE = 7  # its machine's row (`market.machines`)
FEATURES = 8  # a bit for each (`features_mask`)
CODES = 9

# Bits of FLAGS: any of them keeps jobs away.
UNREACHABLE = 1
DRAINING = 2
UNAVAILABLE = 4
SUSPENDED = 8
# A buyer that has to dial it cannot.
NOT_DIALABLE = 16

_ROWS_MIN = 1

_FEATURE_BITS = {feature.value: bit for bit, feature in enumerate(Feature)}
# Of an int64 that stays positive.
_MASK_BITS = 62


@lru_cache(maxsize=4096)
def code_of(text: str) -> int:
    """A 63-bit number for a word such as a region, the same in every process. Words come from
    strangers, so a table of all words ever seen would be a leak; matching compares the words
    themselves before it names a node."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def features_mask(features: Iterable[str]) -> int:
    """A bit for each word. Words of later versions share the bits that are left: matching compares
    the words themselves before it names a node."""
    mask = 0
    for word in features:
        bit = _FEATURE_BITS.get(word)
        if bit is None:
            bit = len(_FEATURE_BITS) + code_of(word) % (_MASK_BITS - len(_FEATURE_BITS))
        mask |= 1 << bit
    return mask


def tie_of(node: PeerId) -> int:
    """A 64-bit number by which equal nodes are told apart, whatever row they are in."""
    return int.from_bytes(hashlib.blake2b(node.encode(), digest_size=8).digest())


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a table. `index` are their row numbers, None if these are all rows in order."""

    values: Floats
    codes: Ints
    ties: Ties
    index: Ints | None

    @property
    def size(self) -> int:
        return len(self.ties)

    def value(self, column: int) -> Floats:
        """One of the columns of `values`, such as BUSY."""
        values: Floats = self.values[column]
        return values

    def code(self, column: int) -> Ints:
        """One of the columns of `codes`, such as REGION."""
        codes: Ints = self.codes[column]
        return codes

    def select(self, positions: Ints) -> "Rows":
        """The rows at these positions of this selection."""
        return Rows(
            self.values.take(positions, axis=1),
            self.codes.take(positions, axis=1),
            self.ties.take(positions),
            positions if self.index is None else self.index.take(positions),
        )

    def row_number(self, position: int) -> int:
        return position if self.index is None else int(self.index[position])


class ModelTable:
    """Columns of all offers of one model digest, or of one model name."""

    __slots__ = ("_codes", "_ties", "_values", "model", "nodes", "row_of")

    def __init__(self, model: str) -> None:
        self.model = model
        self.nodes: list[PeerId] = []
        self.row_of: dict[PeerId, int] = {}
        self._values: Floats = np.zeros((VALUES, _ROWS_MIN))
        self._codes: Ints = np.zeros((CODES, _ROWS_MIN), np.int64)
        self._ties: Ties = np.zeros(_ROWS_MIN, np.uint64)

    def __len__(self) -> int:
        return len(self.nodes)

    def put(self, node: PeerId, values: Sequence[float], codes: Sequence[int], *, tie: int) -> None:
        """Add the node's row or replace it."""
        row = self.row_of.get(node)
        if row is None:
            row = self.row_of[node] = len(self.nodes)
            self.nodes.append(node)
            if row == len(self._ties):
                self._resize(2 * row)
        self._values[:, row] = values
        self._codes[:, row] = codes
        self._ties[row] = tie

    def remove(self, node: PeerId) -> None:
        row = self.row_of.pop(node)
        last = len(self.nodes) - 1
        moved = self.nodes[last]
        if row != last:
            self._values[:, row] = self._values[:, last]
            self._codes[:, row] = self._codes[:, last]
            self._ties[row] = self._ties[last]
            self.nodes[row] = moved
            self.row_of[moved] = row
        self.nodes.pop()
        if _ROWS_MIN < 4 * last < len(self._ties):
            self._resize(len(self._ties) // 2)

    def set_value(self, node: PeerId, column: int, value: float) -> None:
        self._values[column, self.row_of[node]] = value

    def set_code(self, node: PeerId, column: int, code: int) -> None:
        self._codes[column, self.row_of[node]] = code

    def rows(self) -> Rows:
        """All rows. The arrays are views: they change with the table."""
        size = len(self.nodes)
        return Rows(self._values[:, :size], self._codes[:, :size], self._ties[:size], None)

    def rows_of(self, nodes: Iterable[PeerId]) -> Rows:
        """The rows of those `nodes` that are listed, in the order given and once each."""
        found = dict.fromkeys(self.row_of[node] for node in nodes if node in self.row_of)
        return self.rows().select(np.array(list(found), np.int64))

    def _resize(self, capacity: int) -> None:
        keep = min(capacity, len(self._ties))
        for name in ("_values", "_codes", "_ties"):
            old = getattr(self, name)
            new = np.zeros((*old.shape[:-1], capacity), old.dtype)
            new[..., :keep] = old[..., :keep]
            setattr(self, name, new)
