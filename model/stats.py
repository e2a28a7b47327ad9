"""What an engine tells of itself between rounds: counts and bytes, for metrics and admission."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """running, waiting: sequences; batch_size: rows of the last round.

    kv_bytes_used: what the running sequences take at their longest; kv_bytes_allocated: what the cache
    holds for them; kv_bytes_capacity: kv_cache_bytes, or what max_batch of the longest sequences would take.
    free_slots: how many more would run now, 0 while the first in line waits for memory.
    image_cache_*, prefix_cache_*: lookups since the start, see `model.vision`.
    """

    running: int
    waiting: int
    batch_size: int
    kv_bytes_used: int
    kv_bytes_allocated: int
    kv_bytes_capacity: int
    free_slots: int
    image_cache_hits: int = 0
    image_cache_misses: int = 0
    prefix_cache_hits: int = 0
    prefix_cache_misses: int = 0
