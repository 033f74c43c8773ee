"""How much memory a program needs for its tensors: those alive at once, and the heap that holds them."""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recmtl.distributed.allocator import LARGEST_BLOCK


class Heap:
    """A heap as glibc keeps it: a block goes into the smallest hole that holds it, else on top; holes side by side
    become one. Blocks larger than `LARGEST_BLOCK` are memory of their own.

    What it leaves out: glibc asks for some 100 bytes more than an aligned block needs and gives them to small objects,
    so that a hole between two blocks may no longer hold what was in it.
    """

    def __init__(self) -> None:
        self.size = self.peak = self._mapped = 0
        self._holes: list[tuple[int, int]] = []  # (start, size), in order

    def take(self, size: int) -> int:
        """Place a block; returns where it starts."""
        if size > LARGEST_BLOCK:
            start, self._mapped = -1, self._mapped + size
        elif fitting := [(length, place) for place, length in self._holes if length >= size]:
            length, start = min(fitting)
            self._holes.remove((start, length))
            if length > size:
                bisect.insort(self._holes, (start + size, length - size))
        else:
            start, self.size = self.size, self.size + size
        self.peak = max(self.peak, self.size + self._mapped)
        return start

    def give_back(self, start: int, size: int) -> None:
        """Free a block."""
        if start < 0:
            self._mapped -= size
            return
        at = bisect.bisect(self._holes, (start, size))
        if at < len(self._holes) and self._holes[at][0] == start + size:
            size += self._holes.pop(at)[1]
        if at and sum(self._holes[at - 1]) == start:
            start, before = self._holes.pop(at - 1)
            size += before
        bisect.insort(self._holes, (start, size))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made under it that are alive, remembers the most, and keeps them in a `Heap`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.heap = Heap()
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, self.heap.take(storage.nbytes()), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, start: int, size: int) -> None:
        self.now -= size
        self.heap.give_back(start, size)
