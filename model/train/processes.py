"""One training run over the processes that `torchrun` started, or over this one alone.

Invariant: what a step takes does not depend on how many processes share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from model.device import CPU


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

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Their gradients, each the mean over all processes from now on, which count alike: of losses over
        unlike numbers of tokens it is nearly, not quite, what one process alone would have."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        means = (flat / self.count).split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def agree(self, network: nn.Module) -> None:
        """Its weights, in all processes those of the lead."""
        if self.count > 1:
            for weight in network.state_dict().values():
                dist.broadcast(weight, 0)

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
        self.wait()

    def wait(self) -> None:
        """Until all have come so far."""
        if self.count > 1:
            dist.barrier()


ALONE = Processes(0, 1, CPU)


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """device: "cpu" or "cuda"; under torchrun each process takes the GPU of its local rank."""
    own = torch.device(device)
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield Processes(0, 1, own)
        return
    if own.type == "cuda":
        own = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), own)
    finally:
        dist.destroy_process_group()
