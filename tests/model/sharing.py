"""Two processes by torchrun, and what each does in `test_shared_steps`, with a folder to read and write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPVisionModel

from model.train.features import FeaturePool, build_pool
from model.train.processes import ALONE, Processes, joined
from model.train.tower import TOWER_CONFIG

SCENES = 40  # three batches, of which the last is short


def run_in_two(module: str, *arguments: str, seconds: float) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen([*torchrun, "-m", module, *arguments])
    try:
        assert process.wait(seconds) == 0
    finally:
        process.terminate()  # not kill: it has to end its own children
        process.wait(60)


def pool_of(folder: Path, name: str, processes: Processes = ALONE) -> FeaturePool:
    torch.manual_seed(0)
    tower = CLIPVisionModel(TOWER_CONFIG)
    return build_pool(tower, folder / "sprites.npy", folder / name, SCENES, lambda _: None, processes)


def share(folder: Path) -> None:
    with joined("cpu") as processes:
        layer = nn.Linear(3, 2, bias=False)
        nn.init.constant_(layer.weight, processes.rank + 1.0)
        processes.agree(layer)
        (layer(torch.ones(3)).sum() * processes.rank).backward()
        processes.average(layer.parameters())
        pool_of(folder, "shared.npy", processes)
        torch.save(
            {"weight": layer.weight.detach(), "grad": layer.weight.grad}, folder / f"{processes.rank}.pt"
        )


if __name__ == "__main__":
    share(Path(sys.argv[1]))
