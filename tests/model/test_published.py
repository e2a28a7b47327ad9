"""Directories laid out as the Hub's LLaVA-1.5-7B and the published twig load, and answer as they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from model.checkpoint import CheckpointError
from model.engine import Engine, EngineConfig
from model.request import Request, Result, SamplingParams
from service.settings import WorkerSettings
from service.worker import load_engine
from tests.model.published import (
    IMAGE,
    PATCHES,
    Rename,
    base_shapes,
    drawn,
    newer_names,
    older_names,
    write_base,
    write_twig,
)

FORK, TWIG_LAYERS, DROP = 2, 3, 24
QUESTION = "Describe the image."
MAX_TOKENS = 10
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return drawn(base_shapes())


@pytest.fixture(scope="module")
def base(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("hub") / "llava-1.5-7b-hf", tensors)


@pytest.fixture(scope="module")
def twig(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twig(tmp_path_factory.mktemp("twig") / "twig", tensors, FORK, TWIG_LAYERS)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def generated(base: Path, picture: Image.Image) -> list[int]:
    """What transformers answers from the same directory, greedily."""
    vlm = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(base, backend="pil")
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    words = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[picture], text=words, return_tensors="pt")
    output = vlm.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
    return output[0, inputs.input_ids.shape[1] :].tolist()


def ask(engine: Engine, picture: Image.Image, **fields: object) -> Result:
    request = Request(QUESTION, [picture], SamplingParams(max_tokens=MAX_TOKENS), **fields)
    (result,) = engine.generate([request])
    assert result.error is None
    return result


def test_every_name_of_the_hubs_index_is_there() -> None:
    assert len(base_shapes()) == 686


@pytest.mark.parametrize("rename", [older_names, newer_names])
def test_both_key_layouts_answer_as_transformers_does(
    tensors: Tensors, picture: Image.Image, generated: list[int], tmp_path: Path, rename: Rename
) -> None:
    engine = Engine.from_pretrained(write_base(tmp_path / "base", tensors, rename), dtype="float32")
    result = ask(engine, picture)
    assert result.token_ids == generated
    assert result.image_tokens == result.kept_tokens == PATCHES


def test_its_words_and_its_card(base: Path) -> None:
    engine = Engine.from_pretrained(base, dtype="float32")
    ids = engine._adapter.prompt_token_ids(QUESTION, images=1)
    words = "USER: <image>\nDescribe the image. ASSISTANT:"
    assert ids == AutoProcessor.from_pretrained(base, backend="pil").tokenizer(words)["input_ids"]
    assert (ids[0], ids.count(IMAGE)) == (1, 1)
    assert engine._adapter.decode is not None
    assert engine._adapter.decode(ids).endswith(f"{QUESTION} ASSISTANT:")
    card = engine.card
    assert (card.model_id, card.family, card.layers) == ("llava-1.5-7b-hf", "llava", 32)
    assert (card.image_tokens, card.grid, card.max_model_len) == (PATCHES, (24, 24), 4096)
    assert (card.image.height, card.image.width, card.image.fit) == (336, 336, "crop")
    assert engine._adapter.eos_token_ids == {2}


@pytest.fixture(scope="module")
def engine(base: Path, twig: Path) -> Engine:
    return Engine.from_pretrained(
        base,
        twig,
        dtype="float32",
        config=EngineConfig(max_batch=2, draft_threshold=0.0, governor=False),
        fork_layer=FORK,
        drop_layer=DROP,
    )


def test_the_published_twig_takes_its_place_from_flags(
    base: Path, twig: Path, engine: Engine, picture: Image.Image, generated: list[int]
) -> None:
    assert engine.card.quality == {"fast": 64, "balanced": 128, "best": 192, "exact": 576}
    assert engine.card.speculation
    assert ask(engine, picture).token_ids == generated
    with pytest.raises(CheckpointError, match="fork_layer and drop_layer"):
        Engine.from_pretrained(base, twig, dtype="float32")


@pytest.mark.parametrize(("retained", "kept"), [(64, 41), (192, 227)])
def test_pruned_and_drafted_equals_pruned_plain(
    engine: Engine, picture: Image.Image, retained: int, kept: int
) -> None:
    """R' as in the paper's table for this shape."""
    plain, fast = (ask(engine, picture, retained_tokens=retained, speculation=flag) for flag in (False, True))
    assert plain.token_ids == fast.token_ids
    assert plain.kept_indices == fast.kept_indices
    assert plain.kept_tokens == kept
    assert fast.draft_tokens > 0 == plain.draft_tokens


def test_padded_as_the_published_twig_was_trained(base: Path, picture: Image.Image) -> None:
    padded = Engine.from_pretrained(base, dtype="float32", config=EngineConfig(image_fit="pad"))
    assert padded.card.image.fit == "pad"
    assert ask(padded, picture).image_tokens == PATCHES


def test_the_worker_serves_it_padded(base: Path, twig: Path) -> None:
    """What TWIGSERVE_WORKER_IMAGE_FIT, FORK_LAYER and DROP_LAYER say reaches the engine."""
    settings = WorkerSettings(
        vlm=str(base), twig=str(twig), dtype="float32", fork_layer=FORK, drop_layer=DROP, image_fit="pad"
    )
    card = load_engine(settings).card
    assert (card.image.fit, card.image.pad_color) == ("pad", (122, 116, 104))


def test_a_shard_that_is_not_there(tensors: Tensors, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tensors)
    (base / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        Engine.from_pretrained(base, dtype="float32")


def test_an_index_without_a_map(tensors: Tensors, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tensors)
    (base / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        Engine.from_pretrained(base, dtype="float32")
