"""The training loop that all runs share: stages, learning rate, checkpoints, one JSON line every 50 steps.

On a terminal a bar shows how far it is.

Invariant: a step's data depend on its number alone, so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from model.train.processes import ALONE, Processes

LOG_STEPS = 50
SAVE_S = 120.0


class HasSteps(Protocol):
    @property
    def steps(self) -> int: ...


StageT = TypeVar("StageT", bound=HasSteps)


def stage_at(stages: Sequence[StageT], step: int) -> StageT:
    """The stage that step number `step` (from 0) belongs to."""
    for stage in stages:
        if step < stage.steps:
            return stage
        step -= stage.steps
    return stages[-1]


@dataclass(frozen=True)
class Phase(Generic[StageT]):
    """Stages under one warm-up and cosine."""

    rate: float
    warmup_steps: int
    stages: tuple[StageT, ...]

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


def phase_at(phases: Sequence[Phase[StageT]], step: int) -> tuple[Phase[StageT], int]:
    """The phase that step number `step` (from 0) belongs to, and the step's number in it."""
    for phase in phases:
        if step < phase.steps:
            return phase, step
        step -= phase.steps
    raise ValueError("the step lies past the last phase")


def cosine_rate(peak: float, step: int, warmup_steps: int, progress: float) -> float:
    """Linear warm-up, then a cosine over `progress` 0..1 down to 3 % of the peak."""
    warm = min(1.0, (step + 1) / warmup_steps)
    return peak * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class Checkpoint:
    """Modules and optimizers under one file, with the number of steps done."""

    def __init__(self, path: Path, **parts: Any) -> None:
        self.path, self.parts = path, parts

    def load(self) -> int:
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True, map_location="cpu")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        done: int = state["done"]
        return done

    def save(self, done: int) -> None:
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        draft = self.path.with_suffix(".tmp")
        torch.save(state | {"done": done}, draft)
        draft.replace(self.path)


class Optimizer(Protocol):
    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def zero_grad(self, *, set_to_none: bool = ...) -> None: ...

    def step(self) -> Any: ...


def update(
    optimizer: Optimizer, network: nn.Module, loss: torch.Tensor, rate: float, processes: Processes = ALONE
) -> None:
    """A step at `rate` along the mean over all processes."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    processes.average(network.parameters())
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def run_steps(
    name: str,
    checkpoint: Checkpoint,
    done: int,
    total: int,
    step: Callable[[int], dict[str, float]],
    *,
    save_s: float = SAVE_S,
    lead: bool = True,
) -> None:
    """Calls `step(n)` for n = done..total-1; each returns figures whose means are printed.

    lead: False in the processes of one run that neither print nor save.
    """
    clock = saved = time.monotonic()
    figures: list[dict[str, float]] = []
    with tqdm(total=total, initial=done, desc=name, unit="step", disable=None if lead else True) as bar:
        for number in range(done, total):
            figures.append(step(number))
            bar.update()
            if lead and (number + 1) % LOG_STEPS == 0:
                means = {key: round(float(np.mean([f[key] for f in figures])), 4) for key in figures[0]}
                took = round((time.monotonic() - clock) / len(figures), 3)
                line = {"run": name, "step": number + 1, "of": total, **means, "step_s": took}
                bar.write(json.dumps(line))
                sys.stdout.flush()
                clock, figures = time.monotonic(), []
            if lead and time.monotonic() - saved > save_s:
                checkpoint.save(number + 1)
                saved = time.monotonic()
    if lead:
        checkpoint.save(total)
