"""Trains the embedded model's twig: T layers on the frozen trunk, by the lessons of `model.train.lessons`.

It starts as base layers K..K+T-1 with the base's norm and output head. It always sees every visual token,
so training shows it all of them in the end; the first steps show a subset, for speed. Where to look is
learned last, and from many pictures, so most steps are those.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from model.scenes.compose import GRID
from model.train import precision
from model.train.batches import IMAGE_TOKENS, Stage, random_batch
from model.train.features import FeaturePool
from model.train.forward import embed_packed
from model.train.lessons import SHARES, Lessons, twig_loss
from model.train.loop import Checkpoint, cosine_rate, run_steps, stage_at, update
from model.train.optimizer import LayersAndRest
from model.train.pack import Packed, Packer
from model.train.processes import ALONE, Processes
from model.train.reading import FrozenBase, Reading, through
from model.train.twig_module import Start, Twig

LEARNING_RATE = 1e-3

STAGES = (
    Stage((48, 96), 8, 8, 300),
    Stage((96, 192), 8, 8, 100),
    Stage((IMAGE_TOKENS, IMAGE_TOKENS), 5, 6, 2400, descriptions=2),
)
LESSONS = Lessons(foresight_weight=1.0, foresight_steps=1)


class TwigRun:
    """A resumable run."""

    def __init__(
        self,
        out: Path,
        vlm: LlavaForConditionalGeneration,
        pool: FeaturePool,
        tokenizer: PreTrainedTokenizerFast,
        fork_layer: int,
        twig_layers: int,
        drop_layer: int,
        *,
        lessons: Lessons | None = None,
        start: Start = "base",
        stages: Sequence[Stage] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        torch.manual_seed(1)
        precision.speed_up(vlm)
        self.vlm, self.pool, self.processes = vlm, pool, processes
        self.lessons, self.stages = lessons or LESSONS, stages or STAGES
        self.base = FrozenBase(vlm, fork_layer, drop_layer)
        self.packer = Packer(tokenizer, IMAGE_TOKENS)
        self.twig = Twig(vlm, fork_layer, twig_layers, start)
        self.optimizer = LayersAndRest(self.twig, rate=LEARNING_RATE, betas=(0.9, 0.95), decay=0.02)
        self.checkpoint = Checkpoint(out / "twig.pt", twig=self.twig, optimizer=self.optimizer)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def train(self) -> None:
        done = self.checkpoint.load()
        run_steps("twig", self.checkpoint, done, self.steps, self._step, lead=self.processes.lead)

    def _step(self, step: int) -> dict[str, float]:
        stage = stage_at(self.stages, step)
        packed, visual, _ = random_batch(self.pool, self.packer, stage, [step, 13], self.processes)
        packed, visual = packed.to(self.vlm.device), visual.to(self.vlm.device)
        share = float(np.random.default_rng([step, 19]).choice(SHARES))
        with precision.autocast(self.vlm.device):
            reading = self._read(packed, visual)
            loss, logits = twig_loss(self.twig, self.base, reading, self.lessons, step, share)
        rate = cosine_rate(LEARNING_RATE, step, 50, step / self.steps)
        update(self.optimizer, self.twig, loss, rate, self.processes)
        right = (logits.argmax(-1) == packed.target).float().mean()
        return {"loss": loss.item(), "right": right.item()}

    @torch.no_grad()
    def _read(self, packed: Packed, visual: torch.Tensor) -> Reading:
        """`visual` [B, V, tower hidden] is not projected yet."""
        text = self.vlm.model.language_model
        hidden = embed_packed(self.vlm, packed, visual)
        rotary = text.rotary_emb(hidden, position_ids=packed.positions)
        inputs = {"attention_mask": packed.mask, "position_embeddings": rotary}
        shown = torch.zeros_like(packed.ids, dtype=torch.bool).scatter(1, packed.visual_at, True)
        hidden = through(self.base.trunk, hidden, inputs)
        return Reading(
            hidden, packed.mask, rotary, shown, packed.target_at, packed.target, packed.turn, (GRID, GRID)
        )
