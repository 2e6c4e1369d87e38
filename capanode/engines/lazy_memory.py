"""Memory that is zero until it is written, and costs nothing before that or after it is given back.

The operating system's pages do it: addresses are reserved at once, memory comes with the first
write and goes when a block is given back.
"""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor


class LazyMemory:
    """`tensor` is zeros of the given sizes; blocks of `block_bytes` of it can be given back."""

    def __init__(
        self, sizes: Sequence[int], dtype: torch.dtype, device: torch.device, *, block_bytes: int
    ) -> None:
        self._pages: mmap.mmap | None = None
        self._block_bytes = block_bytes
        is_page_aligned = block_bytes % mmap.PAGESIZE == 0
        if device.type == "cpu" and is_page_aligned and hasattr(mmap, "MADV_NOHUGEPAGE"):
            # Private: pages of a shared mapping keep their content when they are given back.
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._pages = mmap.mmap(-1, math.prod(sizes) * dtype.itemsize, flags=private)
            # A huge page would make memory of 2 MiB where a short job needs 4 KiB.
            self._pages.madvise(mmap.MADV_NOHUGEPAGE)
            self.tensor: Tensor = torch.frombuffer(self._pages, dtype=dtype).view(*sizes)
        else:
            self.tensor = torch.zeros(*sizes, dtype=dtype, device=device)

    @property
    def can_give_back(self) -> bool:
        return self._pages is not None

    def give_back(self, block: int) -> None:
        """Let the system have the memory of a block, which reads as zeros afterwards."""
        assert self._pages is not None
        self._pages.madvise(mmap.MADV_DONTNEED, block * self._block_bytes, self._block_bytes)
