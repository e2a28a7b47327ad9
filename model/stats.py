"""What an engine tells of itself between rounds: counts and bytes, for metrics and admission."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.memory import KvBudget
    from model.runner import Runner
    from model.scheduler import Scheduler


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

    @classmethod
    def of(cls, scheduler: Scheduler, runner: Runner, memory: KvBudget, batch_size: int) -> EngineStats:
        vision = runner.vision
        return cls(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            batch_size=batch_size,
            kv_bytes_used=memory.reserved_bytes(g.prompt.kv for g in scheduler.running),
            kv_bytes_allocated=runner.cache.allocated_bytes(),
            kv_bytes_capacity=memory.capacity_bytes,
            free_slots=0 if scheduler.waiting else scheduler.free_slots,
            image_cache_hits=vision.features.uses.hits,
            image_cache_misses=vision.features.uses.misses,
            prefix_cache_hits=vision.prefixes.uses.hits,
            prefix_cache_misses=vision.prefixes.uses.misses,
        )
