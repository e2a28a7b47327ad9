"""One training run over the processes that `torchrun` started, or over this one alone.

Invariant: what a step computes does not depend on how many processes share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Processes:
    """rank: of this process among `count`. device: its own."""

    rank: int
    count: int
    device: torch.device

    @property
    def lead(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def shared(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over all processes."""
        if self.count == 1:
            return module
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[self.device] if self.device.type == "cuda" else None
        )

    def total(self, number: int) -> int:
        if self.count == 1:
            return number
        tensor = torch.tensor(number, device=self.device)
        dist.all_reduce(tensor)
        return int(tensor)

    def in_turn(self, work: Callable[[], Any]) -> None:
        """`work` in the lead alone, while the others wait."""
        if self.lead:
            work()
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """device: "cpu" or "cuda"; under torchrun each process takes the GPU of its local rank."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield Processes(0, 1, torch.device(device))
        return
    own = torch.device(device, dist.get_node_local_rank()) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), own)
    finally:
        dist.destroy_process_group()
