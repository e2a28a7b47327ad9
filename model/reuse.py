"""What is worth keeping of pictures that were seen before: bounded in bytes, the longest unused goes first.

Invariant: the held values never weigh more than the limit; a value that alone is heavier is not kept.
Knows keys and weights, not what they stand for. No torch.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Uses:
    """Lookups since the start."""

    hits: int = 0
    misses: int = 0


class Reuse(Generic[T]):
    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.held_bytes = limit_bytes, 0
        self.uses = Uses()
        self._held: OrderedDict[bytes, tuple[T, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: bytes) -> T | None:
        found = self._held.get(key)
        if found is None:
            self.uses.misses += 1
            return None
        self.uses.hits += 1
        self._held.move_to_end(key)
        return found[0]

    def put(self, key: bytes, value: T, value_bytes: int) -> None:
        if value_bytes > self.limit_bytes:
            return
        self._drop(key)
        while self.held_bytes + value_bytes > self.limit_bytes:
            self._drop(next(iter(self._held)))
        self._held[key] = (value, value_bytes)
        self.held_bytes += value_bytes

    def _drop(self, key: bytes) -> None:
        _, weight = self._held.pop(key, (None, 0))
        self.held_bytes -= weight
