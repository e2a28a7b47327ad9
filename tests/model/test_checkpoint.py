"""Twigs and bases that do not fit are refused by the name of what is wrong, never loaded in part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import CheckpointError, save_twig
from model.config import EngineConfig, TwigConfig
from model.engine import Engine
from tests.model.harness import IMAGE, World, ask, run
from tests.model.tiny import twig_tensors, write_twig


def load(world: World, twig: Path, **flags: int) -> Engine:
    config = EngineConfig(governor=False)
    return Engine.from_pretrained(
        world.base_path, twig, device="cpu", dtype="float32", config=config, **flags
    )


@pytest.fixture
def tensors(wild: World) -> dict[str, torch.Tensor]:
    return twig_tensors(wild.vlm, wild.twig)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    ],
)
def test_missing_tensor(wild: World, tensors: dict[str, torch.Tensor], tmp_path: Path, name: str) -> None:
    del tensors[name]
    with pytest.raises(CheckpointError) as raised:
        load(wild, write_twig(tmp_path, wild.vlm, wild.twig, tensors=tensors))
    assert name in str(raised.value)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight", "surprise"]
)
def test_extra_tensor(wild: World, tensors: dict[str, torch.Tensor], tmp_path: Path, name: str) -> None:
    tensors[name] = torch.zeros(4, 4)
    with pytest.raises(CheckpointError) as raised:
        load(wild, write_twig(tmp_path, wild.vlm, wild.twig, tensors=tensors))
    assert name in str(raised.value)


def test_mismatching_shape_names_both(wild: World, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    expected = tensors[name].shape
    tensors[name] = torch.zeros(expected[0] + 3, expected[1])
    with pytest.raises(CheckpointError) as raised:
        load(wild, write_twig(tmp_path, wild.vlm, wild.twig, tensors=tensors))
    for part in (name, str(expected[0]), str(expected[0] + 3), str(expected[1])):
        assert part in str(raised.value)


def test_a_head_with_more_rows_than_the_base(
    wild: World, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    head = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = torch.cat([head, head[:1]])
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load(wild, write_twig(tmp_path, wild.vlm, wild.twig, tensors=tensors))


@pytest.mark.parametrize("flags", [{}, {"fork_layer": 2}, {"drop_layer": 4}])
def test_published_twig_needs_its_layers_from_flags(
    wild: World, tmp_path: Path, flags: dict[str, int]
) -> None:
    twig = write_twig(tmp_path, wild.vlm, wild.twig, with_config=False)
    with pytest.raises(CheckpointError) as raised:
        load(wild, twig, **flags)
    for name in {"fork_layer", "drop_layer"} - set(flags):
        assert name in str(raised.value)


def test_published_twig_with_flags_is_the_same_twig(wild: World, tmp_path: Path) -> None:
    """Its head has fewer rows than the base's padded vocabulary."""
    rows = len(wild.tokenizer)
    tensors = twig_tensors(wild.vlm, wild.twig, head_rows=rows)
    assert rows < wild.vlm.lm_head.weight.shape[0]
    twig = write_twig(tmp_path, wild.vlm, wild.twig, tensors=tensors, with_config=False)
    prompt = wild.prompt(3, 5, IMAGE, 4)
    ours, flagged = (
        run(engine, ask(prompt, retained=8))[0]
        for engine in (
            wild.engine(draft_tokens=5, draft_threshold=0.6),
            load(wild, twig, fork_layer=2, drop_layer=4),
        )
    )
    assert flagged.token_ids == ours.token_ids
    assert flagged.kept_indices == ours.kept_indices
    assert (flagged.draft_tokens, flagged.accepted_tokens) == (ours.draft_tokens, ours.accepted_tokens)


@pytest.mark.parametrize("flags", [{"fork_layer": 2}, {"drop_layer": 4}])
def test_layers_of_a_twig_that_is_not_there(wild: World, flags: dict[str, int]) -> None:
    """They were accepted, whatever they were, and nothing was pruned."""
    with pytest.raises(CheckpointError, match="no twig"):
        Engine.from_pretrained(wild.base_path, dtype="float32", **flags)


@pytest.mark.parametrize(("fork_layer", "drop_layer"), [(6, 7), (2, 2), (4, 2), (2, 7), (-1, 4)])
def test_layers_outside_the_base(wild: World, tmp_path: Path, fork_layer: int, drop_layer: int) -> None:
    """0 <= K < F <= L = 6."""
    twig = write_twig(tmp_path, wild.vlm, wild.twig, with_config=False)
    with pytest.raises((CheckpointError, ValueError), match=r"fork_layer|drop_layer"):
        load(wild, twig, fork_layer=fork_layer, drop_layer=drop_layer)


def test_unknown_keys_of_the_twigs_configuration(wild: World, tmp_path: Path) -> None:
    twig = write_twig(tmp_path, wild.vlm, wild.twig)
    path = twig / "twig_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fork_lyer": 3}))
    with pytest.raises((CheckpointError, ValueError), match="fork_lyer"):
        load(wild, twig)


def test_unknown_family_lists_the_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba", "architectures": ["Mamba"]}))
    with pytest.raises(CheckpointError) as raised:
        Engine.from_pretrained(tmp_path, dtype="float32")
    assert "mamba" in str(raised.value)
    assert "llava" in str(raised.value)


@pytest.mark.parametrize("content", [None, "{ not json"])
def test_no_base_there(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError) as raised:
        Engine.from_pretrained(tmp_path, dtype="float32")
    assert str(tmp_path) in str(raised.value)


def test_truncated_weights(wild: World, tmp_path: Path) -> None:
    twig = write_twig(tmp_path, wild.vlm, wild.twig)
    weights = twig / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(wild, twig)


def edited_base(world: World, target: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of the base with its tensors changed."""
    for file in world.base_path.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(target / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


LANGUAGE = "language_model.model."


def test_base_with_a_missing_tensor(wild: World, tmp_path: Path) -> None:
    """transformers would draw it at random with a warning."""
    base = edited_base(wild, tmp_path, lambda tensors: tensors.pop(f"{LANGUAGE}layers.3.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.up_proj\.weight"):
        Engine.from_pretrained(base, dtype="float32")


def test_base_with_an_extra_tensor(wild: World, tmp_path: Path) -> None:
    name = f"{LANGUAGE}layers.6.mlp.up_proj.weight"
    base = edited_base(wild, tmp_path, lambda tensors: tensors.update({name: torch.zeros(128, 64)}))
    with pytest.raises(CheckpointError, match=r"layers\.6\.mlp\.up_proj\.weight"):
        Engine.from_pretrained(base, dtype="float32")


def test_base_with_a_mismatching_tensor(wild: World, tmp_path: Path) -> None:
    name = f"{LANGUAGE}layers.3.mlp.up_proj.weight"
    base = edited_base(wild, tmp_path, lambda tensors: tensors.update({name: torch.zeros(130, 64)}))
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.up_proj\.weight.*130.*128"):
        Engine.from_pretrained(base, dtype="float32")


def test_a_twig_of_another_base(wild: World, tmp_path: Path) -> None:
    """Where the twig names its base by hash, another base is refused."""
    twig = write_twig(tmp_path, wild.vlm, wild.twig)
    path = twig / "twig_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="0" * 64):
        load(wild, twig)


def test_what_we_write_is_the_published_format(
    wild: World, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """save_twig against the fixture's own writer: same names, same tensors, and it loads."""
    config = TwigConfig(**asdict(wild.twig))
    save_twig(tmp_path, tensors, wild.vlm.config.text_config, config)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    llama = json.loads((tmp_path / "config.json").read_text())
    assert (llama["model_type"], llama["num_hidden_layers"]) == ("llama", wild.twig.twig_layers)
    prompt = wild.prompt(3, 5, IMAGE, 4)
    ours, theirs = (run(engine, ask(prompt))[0] for engine in (load(wild, tmp_path), wild.engine()))
    assert ours.token_ids == theirs.token_ids
    assert ours.accepted_tokens == theirs.accepted_tokens


def test_unknown_dtype(wild: World) -> None:
    with pytest.raises(ValueError, match="float12"):
        Engine.from_pretrained(wild.base_path, dtype="float12")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fork_layer", 2.0),
        ("fork_layer", "2"),
        ("drop_layer", True),
        ("draft_tokens", 2.5),
        ("retained_tokens", "8"),
        ("draft_threshold", None),
    ],
)
def test_a_value_of_the_wrong_type_is_named(wild: World, tmp_path: Path, key: str, value: object) -> None:
    """Was a TypeError out of torch or of a comparison, which names no file and no key."""
    directory = write_twig(tmp_path, wild.vlm, wild.twig)
    path = directory / "twig_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=rf"twig_config\.json: {key}"):
        load(wild, directory)


@pytest.mark.parametrize(("ids", "ends"), [(None, set()), (7, {7}), ([2, 7], {2, 7})])
def test_an_answer_ends_at_what_ends_generate(
    wild: World, tmp_path: Path, ids: int | list[int] | None, ends: set[int]
) -> None:
    """A generation_config.json without EOS stopped at the text configuration's, where `generate` goes on."""
    base = shutil.copytree(wild.base_path, tmp_path / "base")
    path = base / "generation_config.json"
    said = json.loads(path.read_text())
    assert said.pop("eos_token_id") == wild.tokenizer.eos_token_id
    path.write_text(json.dumps(said if ids is None else said | {"eos_token_id": ids}))
    engine = Engine.from_pretrained(base, dtype="float32")
    assert engine._adapter.eos_token_ids == ends
    path.unlink()
    assert Engine.from_pretrained(base, dtype="float32")._adapter.eos_token_ids == {
        wild.tokenizer.eos_token_id
    }


def test_visual_tokens_with_the_class_token_are_no_grid(wild: World, tmp_path: Path) -> None:
    """The grid had one cell fewer than there are tokens, so a token map pointed one patch too far."""
    base = shutil.copytree(wild.base_path, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vision_feature_select_strategy": "full"}))
    (result,) = run(Engine.from_pretrained(base, dtype="float32"), ask(wild.prompt(0, 5, IMAGE, 4)))
    assert (result.image_tokens, result.image_grids) == (wild.shape.visual_tokens + 1, [None])


@pytest.mark.parametrize("layer", [9, -9, [1, 9]])
def test_a_hidden_state_that_the_tower_has_not(wild: World, tmp_path: Path, layer: int | list[int]) -> None:
    """Was an IndexError at the first picture."""
    base = shutil.copytree(wild.base_path, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vision_feature_layer": layer}))
    with pytest.raises(CheckpointError, match=r"vision_feature_layer -?9 does not lie in"):
        Engine.from_pretrained(base, dtype="float32")


def test_a_default_budget_that_is_impossible(wild: World, tmp_path: Path) -> None:
    """Was a RequestError, though nobody had asked anything."""
    directory = write_twig(tmp_path, wild.vlm, replace(wild.twig, retained_tokens=10_000))
    with pytest.raises(CheckpointError, match="configuration: retained_tokens 10000 is impossible"):
        load(wild, directory)
