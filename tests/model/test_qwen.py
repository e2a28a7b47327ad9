"""What is Qwen2.5-VL's own: key layouts, its limit of visual tokens, what it does not take."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model.engine import Engine
from model.request import Request, RequestError, SamplingParams
from tests.model.families import Family, ask, write_qwen
from tests.model.harness import run
from tests.model.test_families import LAYOUTS, SHAPE


def renamed(source: Path, target: Path, rename: Callable[[str], str]) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = {rename(name): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return write_qwen(tmp_path_factory.mktemp("qwen"), replace(SHAPE, seed=9), tied=True)


def flatten_config(base: Path) -> None:
    """As the Hub has it: the decoder's settings at the top, its rotary ones under their old names."""
    config = json.loads((base / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "use_sliding_window": False,
        "sliding_window": 32768,
    }
    for name in ("layer_types", "model_type", "dtype"):
        text.pop(name, None)
    config["vision_config"]["model_type"] = "qwen2_5_vl"
    (base / "config.json").write_text(json.dumps(text | config))


def test_qwen_reads_every_key_layout(qwen: Family, tmp_path: Path) -> None:
    """The Hub's Qwen2.5-VL-3B has model.layers, visual.blocks and no head of its own."""
    hub = renamed(
        qwen.base_path,
        tmp_path / "hub",
        lambda name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual."),
    )
    flatten_config(hub)
    now = renamed(
        qwen.base_path,
        tmp_path / "now",
        lambda name: (
            name
            if name.startswith("model.language_model.")
            else name.replace("model.layers", "model.language_model.layers")
        ),
    )
    question = qwen.question(3, *LAYOUTS["wide"])
    for base in (hub, now):
        assert any("layers.0." in name for name in load_file(base / "model.safetensors"))
        (result,) = run(Engine.from_pretrained(base, dtype="float32"), ask(question, "keys"))
        assert result.token_ids == qwen.generate(question, 12)


def test_qwen_shrinks_to_the_operators_limit(qwen: Family) -> None:
    engine = qwen.engine(max_image_tokens=9)
    assert engine.card.image_tokens == 9
    picture = Image.new("RGB", (100, 60), "blue")
    request = Request("what?", [picture], SamplingParams(max_tokens=2), request_id="small")
    (result,) = run(engine, request)
    assert result.error is None
    assert 4 <= result.image_tokens <= 9
    (grid,) = result.image_grids
    assert grid is not None
    assert grid[0] * grid[1] == result.image_tokens


@pytest.mark.parametrize("size", [(1, 300), (2, 390)])
def test_qwen_refuses_a_strip(qwen: Family, size: tuple[int, int]) -> None:
    height, width = size
    request = Request("what?", [Image.new("RGB", (width, height))], request_id="strip")
    with pytest.raises(RequestError) as raised:
        qwen.engine().add(request)
    assert raised.value.param == "images"


def test_qwen_wants_words_behind_its_images(qwen: Family) -> None:
    with pytest.raises(RequestError, match="end in an image"):
        qwen.engine().add(ask(qwen.question(3, 2, (30, 62)), "bad"))


def test_qwen_wants_one_run_of_placeholders_an_image(qwen: Family) -> None:
    """Two runs of the right sum, in the wrong order: the positions would be those of other patches."""
    question = qwen.question(3, *LAYOUTS["two of different sizes"])
    with pytest.raises(RequestError, match="one run an image"):
        qwen.engine().add(replace(ask(question, "bad"), prompt_token_ids=question.ids[::-1]))


def test_qwen_refuses_prepared_pictures_over_the_limit(qwen: Family) -> None:
    """The limit was for pictures alone: prepared ones of any size passed, far over what the card says."""
    question, side = qwen.question(3, 2, (30, 62), 2), 40
    values = torch.zeros(side * side, question.tensors["pixel_values"].shape[1])
    large = {"pixel_values": values, "image_grid_thw": torch.tensor([[1, side, side]])}
    with pytest.raises(RequestError, match=r"400 tokens, at most \d\d are") as raised:
        qwen.engine().add(Request(prompt_token_ids=question.short_ids, pixel_values=large))
    assert raised.value.param == "pixel_values"
