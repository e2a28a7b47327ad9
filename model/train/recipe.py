"""The making of the embedded model in two commands: `train base` (tower, features, decoder), `train twig`.

Every stage resumes from its checkpoint in the runs folder; what was made of other weights is not used.
Weights are trained in float32 and written in bfloat16, in the formats of DESIGN: a Hugging Face LLaVA
directory, and the published twig format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    CLIPVisionModel,
    GenerationConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from model.checkpoint import EMBEDDED, EMBEDDED_BASE, EMBEDDED_TWIG, WEIGHTS_FILE, file_sha256, save_twig
from model.config import TwigConfig
from model.device import CPU
from model.train.base import DROP_LAYER, BaseRun, text_config
from model.train.features import FeaturePool, build_pool
from model.train.processes import ALONE, Processes
from model.train.tokenizer import make_tokenizer, save_processor
from model.train.tower import TOWER_CONFIG, TowerRun
from model.train.twig import TwigRun

POOL_SCENES = 12_000
# K=1, T=2, F=12: a budget of 64 keeps R' = 41 visual tokens, the numbers of the paper's own shape. A request
# that names no budget gets 192, which costs this base nothing that matters; 64 costs it some objects.
FORK_LAYER, TWIG_LAYERS, RETAINED_TOKENS = 1, 2, 192

Tick = Callable[[int], Any]


@dataclass(frozen=True)
class Paths:
    """sprites: rendered art. runs: checkpoints and caches. base, twig: where the weights go."""

    sprites: Path
    runs: Path
    base: Path
    twig: Path


def paths(sprites: Path, runs: Path, out: Path | None = None) -> Paths:
    """Where things go by default: the weights into the package, or both below `out`."""
    base, twig = (EMBEDDED_BASE, EMBEDDED_TWIG) if out is None else (out / "base", out / "twig")
    return Paths(sprites, runs, base, twig)


def _pool(paths: Paths, tower: CLIPVisionModel, tick: Tick, processes: Processes) -> FeaturePool:
    store = paths.runs / f"features-{tower_id(tower)}.npy"
    return build_pool(tower, paths.sprites, store, POOL_SCENES, tick, processes)


def tower_id(tower: CLIPVisionModel) -> str:
    """The same of a tower in float32 and of the bfloat16 that is written of it."""
    digest = hashlib.sha256()
    for _, weight in sorted(tower.state_dict().items()):
        digest.update(weight.to(CPU, torch.bfloat16).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def train_base(paths: Paths, tick: Tick = lambda _: None, processes: Processes = ALONE) -> None:
    _check(processes)
    paths.runs.mkdir(parents=True, exist_ok=True)
    tower_run = TowerRun(paths.runs, paths.sprites, processes)
    tower_run.train()
    tower = tower_run.tower.eval()
    tokenizer = make_tokenizer()
    run = BaseRun(paths.runs, _pool(paths, tower, tick, processes), tokenizer, processes)
    run.vlm.model.vision_tower.load_state_dict(tower.state_dict())
    run.train()

    def write() -> None:
        save_processor(paths.base)
        write_base(run.vlm, paths.base)

    processes.in_turn(write)


def write_base(vlm: LlavaForConditionalGeneration, out: Path) -> None:
    text = vlm.config.text_config
    vlm.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    vlm.to(torch.bfloat16).save_pretrained(out)


def open_base(
    paths: Paths, tick: Tick = lambda _: None, processes: Processes = ALONE
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast, FeaturePool]:
    """The trained base in float32, its tokenizer, and the features of its tower."""
    vlm = LlavaForConditionalGeneration.from_pretrained(paths.base, dtype=torch.float32)
    vlm = vlm.to(processes.device)
    tokenizer = AutoTokenizer.from_pretrained(paths.base)
    tower = CLIPVisionModel(TOWER_CONFIG).to(processes.device)
    tower.load_state_dict(vlm.model.vision_tower.state_dict())
    return vlm, tokenizer, _pool(paths, tower.eval(), tick, processes)


def train_twig(paths: Paths, tick: Tick = lambda _: None, processes: Processes = ALONE) -> None:
    _check(processes)
    vlm, tokenizer, pool = open_base(paths, tick, processes)
    out = paths.runs / f"twig-{file_sha256(paths.base / WEIGHTS_FILE)[:16]}"
    out.mkdir(exist_ok=True)
    run = TwigRun(out, vlm, pool, tokenizer, FORK_LAYER, TWIG_LAYERS, DROP_LAYER, processes=processes)
    run.train()
    processes.in_turn(lambda: write_twig(run, paths.base, paths.twig, tokenizer))


def _check(processes: Processes) -> None:
    if processes.count > 2:
        raise ValueError(f"a step is shared by one process or two, not {processes.count}")


def write_twig(run: TwigRun, base: Path, out: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = TwigConfig(
        fork_layer=run.base.fork_layer,
        twig_layers=len(run.twig.model.layers),
        drop_layer=run.base.drop_layer,
        retained_tokens=RETAINED_TOKENS,
        base_model=EMBEDDED,
        base_sha256=file_sha256(base / WEIGHTS_FILE),
    )
    state = {name: weight.to(torch.bfloat16) for name, weight in run.twig.state_dict().items()}
    save_twig(out, state, text_config(tokenizer), config)
