"""Rows of tensors: how they are cut and joined, and the last rows of a series."""

from collections.abc import Sequence

from protocol.tensors import ELEMENT_BYTES, Datatype, NamedTensor, join_strings

Tensors = tuple[NamedTensor, ...]


def row_bytes(tensor: NamedTensor) -> int:
    """Of a tensor of numbers."""
    return ELEMENT_BYTES[tensor.datatype] * (tensor.elements // tensor.rows)


def take_rows(tensor: NamedTensor, start: int, stop: int) -> NamedTensor:
    shape = (stop - start, *tensor.shape[1:])
    if tensor.datatype is Datatype.BYTES:
        wide = tensor.elements // tensor.rows
        data = join_strings(tensor.strings()[start * wide : stop * wide])
    else:
        size = row_bytes(tensor)
        data = tensor.data[start * size : stop * size]
    return NamedTensor(tensor.name, tensor.datatype, shape, data)


def join_rows(parts: Sequence[Tensors]) -> Tensors:
    """The rows of all parts, one after another. They have the same tensors, in any order."""
    first = parts[0]
    by_name = [{tensor.name: tensor for tensor in part} for part in parts]
    return tuple(
        NamedTensor(
            tensor.name,
            tensor.datatype,
            (sum(part[tensor.name].rows for part in by_name), *tensor.shape[1:]),
            b"".join(part[tensor.name].data for part in by_name),
        )
        for tensor in first
    )


def rows_of(tensors: Tensors) -> int | None:
    """How many rows all of them have; None if they differ, or have no dimension for rows."""
    counts = {tensor.rows if tensor.shape else 0 for tensor in tensors}
    return counts.pop() if len(counts) == 1 and 0 not in counts else None


def can_join(one: Tensors, other: Tensors) -> bool:
    """Whether their rows can follow each other in one job."""

    def kinds(tensors: Tensors) -> set[tuple[str, Datatype, tuple[int, ...]]]:
        return {(tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in tensors}

    return kinds(one) == kinds(other) and None not in (rows_of(one), rows_of(other))


class RowWindow:
    """The last rows of a series: what the answer to its next row depends on. It does not change."""

    def __init__(self, rows_max: int, kept: Tensors = ()) -> None:
        self._rows_max = rows_max
        self._kept = kept

    @property
    def rows_max(self) -> int:
        return self._rows_max

    @property
    def rows(self) -> int:
        return self._kept[0].rows if self._kept else 0

    @property
    def size(self) -> int:
        """Bytes of data."""
        return sum(len(tensor.data) for tensor in self._kept)

    def before(self, tensors: Tensors) -> Tensors:
        """The kept rows, and these behind them."""
        return join_rows((self._kept, tensors)) if self._kept else tensors

    def fits(self, tensors: Tensors) -> bool:
        return not self._kept or can_join(self._kept, tensors)

    def after(self, tensors: Tensors) -> "RowWindow":
        """The window once these rows are answered, or stand for such."""
        rows = rows_of(tensors)
        if not self._rows_max or rows is None:
            return self
        if rows >= self._rows_max:
            kept = tuple(take_rows(tensor, rows - self._rows_max, rows) for tensor in tensors)
            return RowWindow(self._rows_max, kept)
        joined = self.before(tensors)
        rows += self.rows
        start = max(0, rows - self._rows_max)
        kept = tuple(take_rows(tensor, start, rows) for tensor in joined)
        return RowWindow(self._rows_max, kept)
