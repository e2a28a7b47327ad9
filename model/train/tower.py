"""Trains the vision tower alone: linear heads on its penultimate layer, dense labels a patch.

Progressive in size: windows of 64, then 128, then the whole 192 pixels. A window uses the position
embeddings of the place it was cut from, so what it learns transfers as it is. The layer read is the one
that LLaVA reads (`vision_feature_layer` -2); the last layer learns which objects are present, on [CLS].
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from model.scenes.compose import CELL_PX, GRID, IGNORE, IMAGE_PX, PATCH_PX, SIZE_PX
from model.scenes.words import COLOR_NAMES, NOUNS, PATTERNS, STYLES
from model.train import precision
from model.train.loop import Checkpoint, Phase, cosine_rate, phase_at, run_steps, update
from model.train.optimizer import LayersAndRest
from model.train.processes import ALONE, Processes
from model.train.stream import normalize, window_loader


@dataclass(frozen=True)
class Stage:
    """side: pixels of the window. objects: the fewest and the most of a scene."""

    side: int
    batch: int
    samples: int
    objects: tuple[int, int] = (1, 6)

    @property
    def steps(self) -> int:
        return self.samples // self.batch


PHASES = (
    Phase(2e-3, 125, (Stage(64, 64, 40_000), Stage(128, 32, 12_000), Stage(192, 16, 8_000))),
    # Whole pictures cost the same however much they show.
    Phase(1e-3, 100, (Stage(192, 16, 24_000, (3, 9)),)),
)
STAGES = tuple(stage for phase in PHASES for stage in phase.stages)
BACKGROUND_WEIGHT = 0.15  # of the background class; without it the tower learns to say "nothing"

TOWER_CONFIG = CLIPVisionConfig(
    hidden_size=192, intermediate_size=768, num_attention_heads=3, num_hidden_layers=6,
    image_size=IMAGE_PX, patch_size=PATCH_PX,
)  # fmt: skip


def penultimate(tower: CLIPVisionModel, pixels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[B, 3, s, s], grid indices [B, p] -> hidden states [B, 1 + p, hidden] before the last layer."""
    parts = tower.embeddings
    patches = parts.patch_embedding(pixels).flatten(2).transpose(1, 2)
    cls = parts.class_embedding.expand(patches.shape[0], 1, -1)
    where = F.pad(positions + 1, (1, 0))  # position 0 is [CLS]
    hidden = tower.pre_layrnorm(torch.cat([cls, patches], 1) + parts.position_embedding(where))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    return hidden


# Of a patch's losses.
WEIGHTS = {"noun": 1.0, "size": 0.3, "style": 0.2, "color": 0.1, "pattern": 0.1, "cell": 0.1}


class DenseHeads(nn.Module):
    """Linear read-outs of a patch's features, and of [CLS]; thrown away after training."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.noun = nn.Linear(hidden, 1 + len(NOUNS))
        self.size = nn.Linear(hidden, len(SIZE_PX))
        self.style = nn.Linear(hidden, len(STYLES))
        self.color = nn.Linear(hidden, len(COLOR_NAMES))
        self.pattern = nn.Linear(hidden, len(PATTERNS))
        self.cell = nn.Linear(hidden, 9)
        self.present = nn.Linear(hidden, len(NOUNS))

    def of_patches(self) -> Iterator[tuple[str, nn.Module]]:
        return ((name, head) for name, head in self.named_children() if name in WEIGHTS)


def dense_loss(
    tower: CLIPVisionModel, heads: DenseHeads, batch: dict[str, Any]
) -> tuple[torch.Tensor, float]:
    """The loss, and the share of object patches whose noun is right."""
    device = tower.device
    batch = {name: labels.to(device) for name, labels in batch.items()}
    with precision.autocast(device):
        hidden = penultimate(tower, normalize(batch["pixels"]), batch["positions"])
        pooled = tower.post_layernorm(tower.encoder.layers[-1](hidden, attention_mask=None)[:, 0])
        told = {name: head(hidden[:, 1:]).float() for name, head in heads.of_patches()}
        present = heads.present(pooled).float()
    count = batch["positions"].shape[1]
    side = CELL_PX // PATCH_PX
    cell = batch["positions"] // GRID // side * 3 + batch["positions"] % GRID // side
    labels = {name: batch[name] for name in ("noun", "size", "style")} | {"cell": cell}
    labels |= {name: batch[name][:, None].expand(-1, count) for name in ("color", "pattern")}
    loss = 5.0 * F.binary_cross_entropy_with_logits(present, batch["present"])
    nouns, noun = told["noun"].flatten(0, 1), batch["noun"].flatten()
    of_nouns = torch.ones(nouns.shape[-1], device=device)
    of_nouns[0] = BACKGROUND_WEIGHT
    for name, weight in WEIGHTS.items():
        said, label = told[name].flatten(0, 1), labels[name].flatten()
        classes = of_nouns if name == "noun" else None
        loss = loss + weight * F.cross_entropy(said, label, classes, ignore_index=IGNORE)
    objects = noun > 0
    right = (nouns[objects].argmax(-1) == noun[objects]).float().mean()
    return loss, float(right)


class TowerRun:
    """A resumable run over the stages."""

    def __init__(self, out: Path, sprites: Path, processes: Processes = ALONE) -> None:
        torch.manual_seed(0)
        self.sprites, self.processes = sprites, processes
        self.tower = CLIPVisionModel(copy.deepcopy(TOWER_CONFIG)).to(processes.device)
        precision.speed_up(self.tower)
        self.heads = DenseHeads(TOWER_CONFIG.hidden_size).to(processes.device)
        self.both = nn.ModuleList([self.tower, self.heads])
        self.optimizer = LayersAndRest(self.both, rate=PHASES[0].rate, betas=(0.9, 0.98), decay=0.03)
        self.checkpoint = Checkpoint(
            out / "tower.pt", tower=self.tower, heads=self.heads, optimizer=self.optimizer
        )
        self._source: tuple[int, Iterator[dict[str, Any]]] | None = None

    def train(self) -> None:
        total = sum(stage.steps for stage in STAGES)
        run_steps(
            "tower", self.checkpoint, self.checkpoint.load(), total, self._step, lead=self.processes.lead
        )

    def _batch(self, step: int) -> dict[str, Any]:
        number, into = _locate(step)
        if self._source is None or self._source[0] != number:
            stage = STAGES[number]
            first = sum(s.samples for s in STAGES[:number]) + into * stage.batch
            loader = window_loader(
                self.sprites, stage.side, stage.objects, stage.batch, first, self.processes
            )
            self._source = number, iter(loader)
        return next(self._source[1])

    def _step(self, step: int) -> dict[str, float]:
        loss, right = dense_loss(self.tower, self.heads, self._batch(step))
        update(self.optimizer, self.both, loss, learning_rate(step), self.processes)
        return {"loss": loss.item(), "right": right}


def _locate(step: int) -> tuple[int, int]:
    """The stage's number that `step` belongs to, and the step's number in it."""
    for number, stage in enumerate(STAGES):
        if step < stage.steps:
            return number, step
        step -= stage.steps
    raise ValueError("the step lies past the last stage")


def learning_rate(step: int) -> float:
    phase, into = phase_at(PHASES, step)
    return cosine_rate(phase.rate, into, phase.warmup_steps, _compute_done(into, phase.stages))


def _compute_done(step: int, stages: tuple[Stage, ...]) -> float:
    """Share of the stages' pixels that `step` steps have seen: the learning rate follows cost, not steps."""
    done = total = 0
    for stage in stages:
        pixels = stage.batch * stage.side**2
        done += min(step, stage.steps) * pixels
        total += stage.steps * pixels
        step = max(0, step - stage.steps)
    return done / total
