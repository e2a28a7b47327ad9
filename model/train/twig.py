"""Trains the twig: T layers on the frozen trunk, by next-token cross-entropy as the paper, and by foresight.

It starts as base layers K..K+T-1 with the base's norm and output head. It always sees every visual token,
so training shows it all of them in the end; the first steps show a subset, for speed.
Beyond the paper: the attention of its last layer at the last prompt token, which ranks the visual tokens, is
led to where the base will look while it gives the whole answer (`foresight`). Next-token loss alone asks of
that token only what the first word needs. It takes no labels, so it goes for any base and any data.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    apply_rotary_pos_emb,
    repeat_kv,
)

from model.train.batches import IMAGE_TOKENS, Stage, random_batch
from model.train.features import FeaturePool
from model.train.loop import Checkpoint, cosine_rate, run_steps, stage_at, update
from model.train.pack import Packed, Packer

LEARNING_RATE = 1e-3
# The base's look at a batch costs three times the twig's own step, and one step in three is enough.
FORESIGHT_STEPS, FORESIGHT_WEIGHT = 3, 0.6

STAGES = (
    Stage((48, 96), 6, 8, 8, 500),
    Stage((96, 192), 6, 8, 8, 300),
    Stage((IMAGE_TOKENS, IMAGE_TOKENS), 6, 8, 8, 150),
)


LayerInputs = dict[str, Any]  # what every layer of a forward is called with


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

    def forward(
        self, hidden: torch.Tensor, inputs: LayerInputs, look: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, N, hidden] of the trunk -> the same, normed; if asked the last layer's attention [B, N, N]."""
        *lower, last = self.model.layers
        for layer in lower:
            hidden = layer(hidden, **inputs)
        attention = attention_of(last, hidden, inputs) if look else None
        return self.model.norm(last(hidden, **inputs)), attention


def attention_of(layer: LlamaDecoderLayer, hidden: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:
    """Attention probabilities of a layer over its input, mean over heads: [B, N, N]."""
    attention, (cos, sin) = layer.self_attn, inputs["position_embeddings"]
    normed = layer.input_layernorm(hidden)
    query, key = (
        project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    key = repeat_kv(key, attention.num_key_value_groups)
    logits = query @ key.transpose(2, 3) * attention.scaling + inputs["attention_mask"]
    return logits.softmax(-1).mean(1)


def foresight(attention: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Attention [B, N, N] -> how much each turn's answer tokens look at each visual token: [turns, V], sum 1.

    The strongest look of any of them counts, so that a long answer's every object does.
    """
    looks = _looks(attention, packed)
    turns = int(packed.turn[-1]) + 1
    most = looks.new_zeros(turns, looks.shape[1])
    most = most.scatter_reduce(0, packed.turn[:, None].expand_as(looks), looks, "amax")
    return most / most.sum(-1, keepdim=True)


def _looks(attention: torch.Tensor, packed: Packed) -> torch.Tensor:
    """[A, V]: of each row that predicts an answer token, at each visual token."""
    length = attention.shape[1]
    row = packed.target_at // length
    return attention.flatten(0, 1)[packed.target_at[:, None], packed.visual_at[row]]


def foresight_loss(attention: torch.Tensor, target: torch.Tensor, packed: Packed) -> torch.Tensor:
    """KL of the last prompt tokens' looks from `target` [turns, V], both over visual tokens alone."""
    # The row that predicts a turn's first answer token is its last prompt token.
    first = torch.cat([packed.turn.new_tensor([0]), torch.nonzero(packed.turn.diff()).flatten() + 1])
    looks = _looks(attention, packed)[first]
    return F.kl_div((looks / looks.sum(-1, keepdim=True)).log(), target, reduction="batchmean")


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
    ) -> None:
        self.vlm, self.pool = vlm.requires_grad_(False), pool
        layers = vlm.model.language_model.layers
        self.trunk, self.middle = layers[:fork_layer], layers[fork_layer:drop_layer]
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
        look = step % FORESIGHT_STEPS == 0
        out, attention = self.twig(hidden, inputs, look)
        logits = self.twig.lm_head(out.flatten(0, 1)[packed.target_at])
        loss = F.cross_entropy(logits, packed.target)
        if attention is not None:
            target = self._foresight(hidden, inputs, packed)
            loss = loss + FORESIGHT_WEIGHT * foresight_loss(attention, target, packed)
        progress = step / sum(stage.steps for stage in STAGES)
        update(self.optimizer, self.twig, loss, cosine_rate(LEARNING_RATE, step, 50, progress))
        right = (logits.argmax(-1) == packed.target).float().mean()
        return {"loss": loss.item(), "right": right.item()}

    @torch.no_grad()
    def _trunk(self, packed: Packed, visual: torch.Tensor) -> tuple[torch.Tensor, LayerInputs]:
        """Hidden states that leave base layer K-1, and what every layer is called with."""
        text = self.vlm.model.language_model
        rows = torch.arange(len(packed.ids))[:, None]
        hidden = text.embed_tokens(packed.ids)
        hidden = hidden.index_put((rows, packed.visual_at), self.vlm.model.multi_modal_projector(visual))
        inputs: LayerInputs = {
            "attention_mask": packed.mask, "position_ids": packed.positions,
            "position_embeddings": text.rotary_emb(hidden, position_ids=packed.positions),
        }  # fmt: skip
        for layer in self.trunk:
            hidden = layer(hidden, **inputs)
        return hidden, inputs

    @torch.no_grad()
    def _foresight(self, hidden: torch.Tensor, inputs: LayerInputs, packed: Packed) -> torch.Tensor:
        """What the layers that pruning leaves with few visual tokens look at, when they have them all."""
        looked = hidden.new_zeros(*hidden.shape[:2], hidden.shape[1])
        for layer in self.middle:
            looked += attention_of(layer, hidden, inputs)
            hidden = layer(hidden, **inputs)
        return foresight(looked, packed)
