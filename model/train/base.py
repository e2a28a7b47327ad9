"""Trains projector and decoder on the frozen tower's features, then writes the base checkpoint.

First the projector alone: each patch's feature is led to the word embeddings of what it shows (noun, size,
place; or colour and pattern), with the output head equal to the embedding, so that naming is copying and the
decoder starts with pictures that it can already read. Then a head of the first layer is made to match words
and patches (`matching`) and to carry what stands there (`carrying`), one behind the drop layer to carry it on
(`fetching`). Then everything but the tower learns descriptions and questions together, heads of it led to
look where the answer stands: for what is asked (`questions`), for nouns that are there more than once
(`cells`), for what to name next and, at last, for the words before it (`naming`). It sees a random subset of
the visual tokens at their own positions (cheap, and the model will meet pruned pictures anyway) and, every
second ten steps, all of them; in most steps they are hidden from layer `DROP_LAYER` on, so that it learns to
have read the picture by then.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from model.scenes.compose import GRID, Scene, object_patches, patches_of
from model.scenes.words import PLACES
from model.train import carrying, fetching, matching, precision
from model.train.batches import IMAGE_TOKENS, Stage, random_batch
from model.train.cells import Cells
from model.train.features import FeaturePool
from model.train.forward import forward_packed
from model.train.looks import Looks
from model.train.loop import Checkpoint, Phase, cosine_rate, phase_at, run_steps, stage_at, update
from model.train.matching import word_ids
from model.train.naming import Naming
from model.train.optimizer import LayersAndRest
from model.train.pack import Packed, Packer
from model.train.processes import ALONE, Processes
from model.train.questions import Questions
from model.train.tower import TOWER_CONFIG


def _in_turns(
    rate: float, warmup_steps: int, questions: int, *, lists: bool = False, times: int = 60
) -> Phase[Stage]:
    """Few visual tokens of many scenes and all of few, ten steps each, so many times."""
    few = Stage((40, 160), questions, 16, 10, 0.75, 2, each=True, lists=lists)
    whole = Stage((IMAGE_TOKENS, IMAGE_TOKENS), questions, 6, 10, 0.75, 2, each=True, lists=lists)
    return Phase(rate, warmup_steps, (few, whole) * times)


DROP_LAYER = 12  # F
PHASES = (
    Phase(1e-3, 50, (Stage((24, 64), 4, 8, 400, 0.5, 2, each=True),)),
    _in_turns(1e-3, 50, questions=6),
    # After the first cosine 0.88 of what is asked where, and 0.91 of what is counted, was right.
    _in_turns(8e-4, 40, questions=8),
    # After the second 25 of 348 articles in lists were wrong, and "an" was hardly ever said.
    _in_turns(8e-4, 40, questions=8, lists=True),
    # To settle: a background in a hundred was told wrong that had been right before.
    _in_turns(2.5e-4, 10, questions=8, lists=True, times=10),
)
STAGES = tuple(stage for phase in PHASES for stage in phase.stages)
ALIGN_STEPS, ALIGN_RATE = 600, 2e-3
# 1/sqrt(hidden), and 4 times that for words, so that they are not drowned by what the layers add.
WEIGHT_STD, EMBED_STD = 0.0625, 0.25


def text_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=16,
        num_attention_heads=4, num_key_value_heads=4, head_dim=64, max_position_embeddings=2048,
        rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def new_base(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=TOWER_CONFIG, text_config=text_config(tokenizer), projector_hidden_act="gelu",
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_seq_length=IMAGE_TOKENS,
    )  # fmt: skip
    vlm = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in vlm.named_parameters():
            if weight.ndim < 2 or "vision_tower" in name:
                continue
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()  # the stream carries the words alone until a layer has something to add
            else:
                weight.normal_(std=EMBED_STD if "embed_tokens" in name else WEIGHT_STD)
        vlm.lm_head.weight.copy_(vlm.get_input_embeddings().weight * (WEIGHT_STD / EMBED_STD))
    return vlm


def patch_words(scene: Scene, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """[M, V] distribution over words that each patch should read as."""
    shares = torch.zeros(IMAGE_TOKENS, len(tokenizer))
    cell = GRID // 3

    def put(rows: torch.Tensor, text: str, share: float) -> None:
        ids = tokenizer.encode(" " + text, add_special_tokens=False)
        for token in ids:
            shares[rows, token] += share / len(ids)

    for thing in scene.objects:
        inside = torch.from_numpy(patches_of(thing))
        put(inside, thing.noun, 0.5)
        put(inside, thing.size, 0.2)
    ground = torch.from_numpy(~object_patches(scene))
    where = torch.arange(IMAGE_TOKENS)
    row, column = where // GRID, where % GRID
    put(ground, scene.color, 0.35)
    put(ground, scene.pattern, 0.35)
    for number, place in enumerate(PLACES):
        put((row // cell) * 3 + column // cell == number, place, 0.3)
    return shares


class BaseRun:
    """A resumable run over alignment and stages."""

    def __init__(
        self, out: Path, pool: FeaturePool, tokenizer: PreTrainedTokenizerFast, processes: Processes = ALONE
    ) -> None:
        torch.manual_seed(1)
        self.pool, self.tokenizer, self.processes = pool, tokenizer, processes
        self.device = device = processes.device
        self.vlm = new_base(tokenizer).to(device)
        precision.speed_up(self.vlm)
        self.vlm.model.vision_tower.requires_grad_(False)
        self.packer = Packer(tokenizer, IMAGE_TOKENS)
        self.nouns = word_ids(tokenizer)[0].to(device)
        lessons = (Questions, Cells, Naming)
        looks = Looks(self.vlm, [layer for lesson in lessons for layer in lesson.layers(DROP_LAYER)])
        self.questions, self.cells, self.naming = (lesson(looks, tokenizer, DROP_LAYER) for lesson in lessons)
        self.optimizer = LayersAndRest(self.vlm, rate=PHASES[0].rate, betas=(0.9, 0.95), decay=0.05)
        self.checkpoint = Checkpoint(out / "base.pt", vlm=self.vlm, optimizer=self.optimizer)

    def train(self) -> None:
        done = self.checkpoint.load()
        if done == 0:
            self._align()
            self._start_heads()
            self.processes.agree(self.vlm)
        total = sum(phase.steps for phase in PHASES)
        run_steps("base", self.checkpoint, done, total, self._step, lead=self.processes.lead)

    def _align(self) -> None:
        projector = self.vlm.model.multi_modal_projector
        words = self.vlm.get_input_embeddings().weight.detach()
        optimizer = torch.optim.AdamW(projector.parameters(), ALIGN_RATE)
        for step in range(ALIGN_STEPS):
            features, target = self._align_batch(step)
            logits = projector(features) @ words.T
            loss = F.cross_entropy(logits, target)
            update(optimizer, projector, loss, cosine_rate(ALIGN_RATE, step, 20, step / ALIGN_STEPS))
            if step % 100 == 99 and self.processes.lead:
                shown = target[:, self.nouns].amax(-1) > 0
                right = logits[shown][:, self.nouns].argmax(-1) == target[shown][:, self.nouns].argmax(-1)
                figures = {"loss": round(loss.item(), 4), "nouns": round(right.float().mean().item(), 4)}
                print(json.dumps({"run": "align", "step": step + 1} | figures), flush=True)

    def _align_batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [n, hidden] of object patches and as many others; the words [n, V] they should read as."""
        rng = np.random.default_rng([step, 7])
        features, targets = [], []
        for pick in rng.integers(len(self.pool.scenes), size=16):
            words = patch_words(self.pool.scenes[pick], self.tokenizer)
            shown = torch.nonzero(words[:, self.nouns.cpu()].amax(-1)).flatten().numpy()
            ground = rng.choice(IMAGE_TOKENS, size=len(shown), replace=False)
            rows = np.concatenate([shown, ground])
            features.append(torch.from_numpy(self.pool.features[pick][rows]).float())
            targets.append(words[rows])
        return torch.cat(features).to(self.device), torch.cat(targets).to(self.device)

    def _step(self, step: int) -> dict[str, float]:
        stage = stage_at(STAGES, step)
        packed, visual, scenes = random_batch(self.pool, self.packer, stage, [step, 11], self.processes)
        packed, visual = packed.to(self.device), visual.to(self.device)
        hide = np.random.default_rng([step, 17]).random() < stage.hidden
        with precision.autocast(self.device):
            hidden = forward_packed(self.vlm, packed, visual, DROP_LAYER if hide else None).flatten(0, 1)
            logits = self.vlm.lm_head(hidden[packed.target_at]).float()
            loss = answer_loss(logits, packed) + self.questions.loss(packed, hidden, logits)
            loss = loss + self.cells.loss(packed, scenes)
            loss = loss + self.naming.loss(packed, scenes, hidden, leading=stage.lists)
        update(self.optimizer, self.vlm, loss, learning_rate(step), self.processes)
        right = (logits.argmax(-1) == packed.target).float()
        nouns = torch.isin(packed.target, self.nouns)
        return {"loss": loss.item(), "right": right.mean().item(), "nouns": right[nouns].mean().item()}

    def _start_heads(self) -> None:
        self.vlm.cpu()  # regressions of minutes, in place
        matching.install(self.vlm, self.pool, self.tokenizer)
        carrying.install(self.vlm, self.pool, self.tokenizer)
        fetching.install(self.vlm, self.pool, self.tokenizer, DROP_LAYER)
        self.vlm.to(self.device)


def answer_loss(logits: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Mean over answer tokens, weighed so that a short answer is not drowned: by the root of its length."""
    weight = torch.bincount(packed.turn).float().rsqrt()[packed.turn]
    each = F.cross_entropy(logits, packed.target, reduction="none")
    return (weight * each).sum() / weight.sum()


def learning_rate(step: int) -> float:
    phase, into = phase_at(PHASES, step)
    return cosine_rate(phase.rate, into, phase.warmup_steps, into / phase.steps)
