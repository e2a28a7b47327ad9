"""Training: packed turns equal lone turns, a resumed run an uninterrupted one, outputs load unmodified."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from model.evaluate import run as run_module
from model.scenes.language import turns
from model.train import ablations as ablations_module
from model.train import base as base_module
from model.train import tower as tower_module
from model.train import twig as twig_module
from model.train.ablations import VARIANTS, Ablations
from model.train.ablations import run as run_ablations
from model.train.base import BaseRun, new_base
from model.train.batches import IMAGE_TOKENS, Stage
from model.train.features import FeaturePool, build_pool
from model.train.forward import forward_packed
from model.train.lessons import Lessons
from model.train.loop import stage_at
from model.train.pack import Packer
from model.train.recipe import Paths, tower_id, write_base
from model.train.tokenizer import save_processor
from model.train.tower import TOWER_CONFIG, TowerRun
from model.train.twig import TwigRun


@pytest.fixture(scope="module")
def pool(sprites: Path, tmp_path_factory: pytest.TempPathFactory) -> FeaturePool:
    torch.manual_seed(0)
    tower = CLIPVisionModel(TOWER_CONFIG)
    return build_pool(tower, sprites, tmp_path_factory.mktemp("pool") / "features.npy", 4, lambda _: None)


def test_a_packed_turn_is_the_lone_prompt(pool: FeaturePool, tokenizer: PreTrainedTokenizerFast) -> None:
    """A turn that saw its neighbours' answers would train on them; here it equals transformers alone."""
    torch.manual_seed(0)
    vlm = new_base(tokenizer).eval()
    packer = Packer(tokenizer, IMAGE_TOKENS)
    asked = turns(pool.scenes[0], np.random.default_rng(0), 2)
    everything = [np.arange(IMAGE_TOKENS)]
    visual = pool.visual(np.array([0]), everything)
    with torch.no_grad():
        packed = packer.pack([asked], everything)
        hidden = forward_packed(vlm, packed, visual).flatten(0, 1)[packed.target_at]
        prompt = f"USER: <image>\n{asked[2].prompt} ASSISTANT: {asked[2].answer}</s>"
        ids = tokenizer.encode(prompt.replace("<image>", "<image>" * IMAGE_TOKENS))
        embeds = vlm.get_input_embeddings()(torch.tensor([ids]))
        at = [i for i, token in enumerate(ids) if token == vlm.config.image_token_index]
        embeds[0, at] = vlm.model.multi_modal_projector(visual)[0]
        alone = vlm.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0]
    answer = len(tokenizer.encode(f" {asked[2].answer}", add_special_tokens=False)) + 1
    torch.testing.assert_close(hidden[-answer:], alone[-answer - 1 : -1], atol=2e-5, rtol=1e-4)
    assert packed.target[-answer:].tolist() == ids[-answer:]


def test_hidden_visual_tokens_are_masked_ones(pool: FeaturePool, tokenizer: PreTrainedTokenizerFast) -> None:
    """Dropping the rows is what masking them in the later layers would be, only cheaper."""
    torch.manual_seed(0)
    vlm = new_base(tokenizer).eval()
    for layer in vlm.model.language_model.layers:  # a new base adds nothing to the stream
        layer.self_attn.o_proj.weight.data.normal_(std=0.05)
    kept = [np.arange(0, IMAGE_TOKENS, 9)]
    packed = Packer(tokenizer, IMAGE_TOKENS).pack([turns(pool.scenes[0], np.random.default_rng(0), 2)], kept)
    visual = pool.visual(np.array([0]), kept)
    masked = packed.mask.clone()
    masked[..., packed.visual_at[0]] = torch.finfo(torch.float32).min

    def hide(_layer: object, args: tuple[object, ...], inputs: dict[str, object]) -> tuple[object, object]:
        return args, inputs | {"attention_mask": masked}

    with torch.no_grad():
        dropped = forward_packed(vlm, packed, visual, drop_layer=5).flatten(0, 1)[packed.target_at]
        for layer in vlm.model.language_model.layers[5:]:
            layer.register_forward_pre_hook(hide, with_kwargs=True)
        expected = forward_packed(vlm, packed, visual).flatten(0, 1)[packed.target_at]
    torch.testing.assert_close(dropped, expected, atol=2e-5, rtol=1e-4)


def test_tower_resumes_where_it_stopped(
    sprites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = tower_module.Stage(64, 2, 2), tower_module.Stage(64, 2, 2, (5, 9))
    monkeypatch.setattr(tower_module, "STAGES", stages)
    monkeypatch.setattr(tower_module, "PHASES", (tower_module.Phase(1e-3, 1, stages),))
    whole = TowerRun(tmp_path / "whole", sprites)
    (tmp_path / "whole").mkdir()
    whole.train()
    (tmp_path / "parts").mkdir()
    first = TowerRun(tmp_path / "parts", sprites)
    first._step(0)
    first.checkpoint.save(1)
    second = TowerRun(tmp_path / "parts", sprites)
    second.train()
    for name, weight in whole.tower.state_dict().items():
        torch.testing.assert_close(second.tower.state_dict()[name], weight, msg=name)


def test_base_and_twig_train_and_load_unmodified(
    pool: FeaturePool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_module, "ALIGN_STEPS", 1)
    monkeypatch.setattr(base_module.BaseRun, "_start_heads", lambda _: None)
    stages = Stage((8, 16), 1, 2, 2), Stage((8, 16), 1, 2, 1, hidden=1.0, each=True)
    monkeypatch.setattr(base_module, "STAGES", stages)
    monkeypatch.setattr(base_module, "PHASES", (base_module.Phase(1e-3, 1, stages),))
    monkeypatch.setattr(twig_module, "STAGES", (Stage((8, 16), 1, 2, 2),))
    run = BaseRun(tmp_path, pool, tokenizer)
    run.train()
    save_processor(tmp_path / "base")
    write_base(run.vlm, tmp_path / "base")
    vlm = LlavaForConditionalGeneration.from_pretrained(tmp_path / "base", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path / "base")
    message = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}
    ]
    prompt = processor.apply_chat_template(message, add_generation_prompt=True)
    assert prompt == "USER: <image>\nDescribe the image. ASSISTANT:"
    lessons = Lessons(foresight_steps=1, pruning_weight=1.0)
    twig = TwigRun(
        tmp_path, vlm, pool, tokenizer, fork_layer=1, twig_layers=2, drop_layer=12, lessons=lessons
    )
    frozen = {name: weight.clone() for name, weight in vlm.state_dict().items()}
    twig.train()
    assert all(torch.equal(weight, frozen[name]) for name, weight in vlm.state_dict().items())
    assert not torch.equal(twig.twig.lm_head.weight, vlm.lm_head.weight)


def test_ablations_train_measure_and_go_on(
    pool: FeaturePool,
    sprites: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A random base has no task right; a mark is made up, to have anything to divide by."""
    torch.manual_seed(0)
    processor = save_processor(tmp_path / "base")
    write_base(new_base(processor.tokenizer), tmp_path / "base")
    monkeypatch.setattr(ablations_module, "open_base", lambda paths: (_opened(paths.base), tokenizer, pool))
    monkeypatch.setattr(ablations_module, "STAGES", (Stage((8, 16), 1, 2, 2),))
    monkeypatch.setattr(run_module, "task_scores", lambda _items, _answers: {"describe": 0.5})
    monkeypatch.setattr(run_module, "MAX_TOKENS", 6)
    paths = Paths(sprites, tmp_path / "runs", tmp_path / "base", tmp_path / "twig")
    ablations = Ablations(paths, steps=1, scenes=1, threads=1)
    plain, deep = VARIANTS[0], next(variant for variant in VARIANTS if variant.name == "K=2")
    out = tmp_path / "ablations.json"
    run_ablations(ablations, [plain], out)
    monkeypatch.setattr(ablations, "measure", Mock(side_effect=ablations.measure))
    report = run_ablations(ablations, [plain, deep], out)
    assert [call.args[0] for call in ablations.measure.call_args_list] == [deep]
    assert json.loads(out.read_text()) == report
    rows = {row[0]: row for row in report["rows"]}
    assert rows[plain.name][1:3] == ["1.000", "1.000"]
    assert rows["K=2"][1:3] == ["1.000", "–"], "two layers of all tokens are more than 64 on average"
    assert all(len(row) == len(report["columns"]) for row in report["rows"])


def _opened(base: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)


def test_a_towers_features_are_not_those_of_another() -> None:
    """A twig behind a new base learned from the old one's features, which lay in the same folder."""
    torch.manual_seed(0)
    first, second = CLIPVisionModel(TOWER_CONFIG), CLIPVisionModel(TOWER_CONFIG)
    assert tower_id(first) != tower_id(second)
    written = CLIPVisionModel(TOWER_CONFIG)
    written.load_state_dict({name: weight.bfloat16() for name, weight in first.state_dict().items()})
    assert tower_id(written) == tower_id(first)


def test_stages_follow_each_other() -> None:
    stages = (Stage((1, 1), 1, 1, 3), Stage((2, 2), 1, 1, 2))
    assert [stage_at(stages, step).visual[0] for step in range(7)] == [1, 1, 1, 2, 2, 2, 2]


def test_each_phase_of_the_tower_has_a_cosine_of_its_own() -> None:
    first = 0
    for phase in tower_module.PHASES:
        last = first + phase.steps - 1
        peak = tower_module.learning_rate(first + phase.warmup_steps)
        assert phase.rate * 0.9 < peak <= phase.rate
        assert tower_module.learning_rate(last) < 0.04 * phase.rate
        first = last + 1
    with pytest.raises(ValueError, match="past the last phase"):
        tower_module.learning_rate(first)
