"""Trains the twig: T layers on the frozen trunk, next-token cross-entropy, as the paper does.

It starts as base layers K..K+T-1 with the base's norm and output head. It always sees every visual token,
so training shows it all of them in the end; the first steps show a subset, for speed.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from model.train.batches import IMAGE_TOKENS, Stage, random_batch
from model.train.features import FeaturePool
from model.train.loop import Checkpoint, cosine_rate, run_steps, stage_at, update
from model.train.pack import Packed, Packer

LEARNING_RATE = 1e-3


STAGES = (
    Stage((48, 96), 3, 3, 8, 200),
    Stage((96, 192), 6, 4, 8, 300),
    Stage((IMAGE_TOKENS, IMAGE_TOKENS), 6, 5, 8, 120),
)


class Twig(nn.Module):
    """State-dict names are the published format's: model.layers.*, model.norm, lm_head."""

    def __init__(self, vlm: LlavaForConditionalGeneration, fork_layer: int, twig_layers: int) -> None:
        super().__init__()
        text = vlm.model.language_model
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(
            copy.deepcopy(text.layers[fork_layer + i]) for i in range(twig_layers)
        )
        self.model.norm = copy.deepcopy(text.norm)
        self.lm_head = copy.deepcopy(vlm.lm_head)

    def forward(self, hidden: torch.Tensor, **layer_inputs: object) -> torch.Tensor:
        for layer in self.model.layers:
            hidden = layer(hidden, **layer_inputs)
        return self.model.norm(hidden)


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
    ) -> None:
        self.vlm, self.pool, self.fork_layer = vlm.requires_grad_(False), pool, fork_layer
        self.packer = Packer(tokenizer, IMAGE_TOKENS)
        self.twig = Twig(vlm, fork_layer, twig_layers).requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            self.twig.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.02
        )
        self.checkpoint = Checkpoint(out / "twig.pt", twig=self.twig, optimizer=self.optimizer)

    def train(self) -> None:
        run_steps("twig", self.checkpoint, self.checkpoint.load(), sum(s.steps for s in STAGES), self._step)

    def _step(self, step: int) -> dict[str, float]:
        packed, visual = random_batch(self.pool, self.packer, stage_at(STAGES, step), [step, 13])
        hidden, inputs = self._trunk(packed, visual)
        logits = self.twig.lm_head(self.twig(hidden, **inputs).flatten(0, 1)[packed.target_at])
        loss = F.cross_entropy(logits, packed.target)
        progress = step / sum(stage.steps for stage in STAGES)
        update(self.optimizer, self.twig, loss, cosine_rate(LEARNING_RATE, step, 50, progress))
        right = (logits.argmax(-1) == packed.target).float().mean()
        return {"loss": loss.item(), "right": right.item()}

    @torch.no_grad()
    def _trunk(self, packed: Packed, visual: torch.Tensor) -> tuple[torch.Tensor, dict[str, object]]:
        """Hidden states that leave base layer K-1, and what every layer is called with."""
        text = self.vlm.model.language_model
        rows = torch.arange(len(packed.ids))[:, None]
        hidden = text.embed_tokens(packed.ids)
        hidden = hidden.index_put((rows, packed.visual_at), self.vlm.model.multi_modal_projector(visual))
        inputs: dict[str, object] = {
            "attention_mask": packed.mask, "position_ids": packed.positions,
            "position_embeddings": text.rotary_emb(hidden, position_ids=packed.positions),
        }  # fmt: skip
        for layer in text.layers[: self.fork_layer]:
            hidden = layer(hidden, **inputs)
        return hidden, inputs
