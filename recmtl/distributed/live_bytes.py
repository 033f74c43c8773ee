"""How many bytes a program's tensors need at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

from recmtl.distributed.allocator import LARGEST_BLOCK
from recmtl.runtime.private_api import TorchDispatchMode, tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made under it that are alive, and remembers the most.

    Attributes:
        now, peak: bytes, and the most of them.
        heap_peak: the most in blocks that share the C library's heap, which larger ones than `LARGEST_BLOCK` do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.heap_peak = 0
        self._heap = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):  # made before, if it was not seen yet: a view of it is nothing new
                self._seen.add(tensor.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, change: int) -> None:
        """Bytes that came, or went."""
        self.now += change
        self.peak = max(self.peak, self.now)
        if abs(change) <= LARGEST_BLOCK:
            self._heap += change
            self.heap_peak = max(self.heap_peak, self._heap)
