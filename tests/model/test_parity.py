"""With all visual tokens and no speculation the engine is transformers' `generate`, token for token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaProcessor

from model.engine import Engine
from model.request import Request, SamplingParams
from tests.model.harness import IMAGE, Prompt, World, ask, run
from tests.model.tiny import Shape, TwigShape

LAYOUTS = {
    "text only": (7,),
    "one image": (5, IMAGE, 4),
    "image first": (IMAGE, 6),
    "two images": (3, IMAGE, 2, IMAGE, 4),
    "two images side by side": (3, IMAGE, IMAGE, 4),
    "image at the end": (5, IMAGE),
}


def unpruned(world: World, prompt: Prompt, name: str, max_tokens: int = 24) -> Request:
    everything = prompt.images * world.shape.visual_tokens
    return ask(prompt, name, max_tokens=max_tokens, retained=everything or None, speculation=False)


@pytest.fixture(scope="module")
def engine(world: World) -> Engine:
    return world.engine()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_generate(world: World, engine: Engine, layout: str) -> None:
    prompts = [world.prompt(seed, *LAYOUTS[layout]) for seed in range(3)]
    for number, prompt in enumerate(prompts):
        (result,) = run(engine, unpruned(world, prompt, f"{layout} {number}"))
        assert result.token_ids == world.generate(prompt, 24)
        assert result.prompt_tokens == len(prompt.ids)
        assert result.image_tokens == result.kept_tokens == prompt.images * world.shape.visual_tokens


def test_without_a_twig_equals_generate(world: World) -> None:
    prompts = [world.prompt(20 + index, *parts) for index, parts in enumerate(LAYOUTS.values())]
    engine = world.engine(twig=False)
    results = run(engine, *(unpruned(world, prompt, str(index)) for index, prompt in enumerate(prompts)))
    for prompt, result in zip(prompts, results, strict=True):
        assert result.token_ids == world.generate(prompt, 24)
        assert result.draft_tokens == 0


def test_finish_reasons(tame: World) -> None:
    engine, eos = tame.engine(), tame.tokenizer.eos_token_id
    prompts = [tame.prompt(seed, 5, IMAGE, 4) for seed in range(6)]
    results = run(engine, *(unpruned(tame, prompt, str(index)) for index, prompt in enumerate(prompts)))
    assert {result.finish_reason for result in results} == {"stop", "length"}
    for result in results:
        ended = result.token_ids[-1] == eos
        assert result.finish_reason == ("stop" if ended else "length")
        assert ended or len(result.token_ids) == 24


def test_ignore_eos_runs_to_the_limit(tame: World) -> None:
    engine, eos = tame.engine(), tame.tokenizer.eos_token_id
    prompts = [tame.prompt(seed, 5, IMAGE, 4) for seed in range(6)]
    for speculation in (False, True):
        requests = [
            ask(prompt, str(index), max_tokens=24, retained=16, ignore_eos=True, speculation=speculation)
            for index, prompt in enumerate(prompts)
        ]
        results = run(engine, *requests)
        assert all(len(result.token_ids) == 24 for result in results)
        assert any(eos in result.token_ids[:-1] for result in results)


def test_expanded_placeholders_are_the_same_prompt(wild: World) -> None:
    engine, prompt = wild.engine(), wild.prompt(1, 3, IMAGE, 2, IMAGE, 4)
    expanded = Prompt(prompt.ids, prompt.ids, prompt.pixels)
    short, long = run(engine, ask(prompt, "short", retained=16), ask(expanded, "long", retained=16))
    assert short.token_ids == long.token_ids
    assert short.kept_indices == long.kept_indices


@pytest.mark.parametrize("array", [False, True])
def test_pictures_and_words_go_through_the_checkpoints_own_processor(wild: World, array: bool) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    processor = LlavaProcessor.from_pretrained(wild.base_path, backend="pil")
    content = [{"type": "image"}, {"type": "text", "text": "is there a cat?"}]
    words = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[picture], text=words, return_tensors="pt")
    expected = wild.generate(Prompt(inputs.input_ids[0].tolist(), [], inputs.pixel_values), 12)
    request = Request(
        "is there a cat?",
        [pixels if array else picture],
        SamplingParams(max_tokens=12),
        retained_tokens=16,
        speculation=False,
    )
    (result,) = wild.engine().generate([request])
    assert result.token_ids == expected
    assert result.request_id


def test_biased_attention_without_grouped_heads(tmp_path: Path) -> None:
    shape = Shape(seed=5, kv_heads=4, attention_bias=True)
    world = World.create(tmp_path, shape, TwigShape())
    prompt = world.prompt(2, 5, IMAGE, 4)
    plain, fast = run(
        world.engine(), unpruned(world, prompt, "plain"), ask(prompt, "fast", retained=16, max_tokens=24)
    )
    assert plain.token_ids == fast.token_ids == world.generate(prompt, 24)


def test_reads_the_hubs_older_tensor_names(wild: World, tmp_path: Path) -> None:
    """The Hub's llava-1.5-7b-hf nests the vision tower's tensors one level deeper than today's writer."""
    base = tmp_path / "base"
    base.mkdir()
    for file in wild.base_path.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    assert any(name.startswith("language_model.model.layers.0.") for name in tensors)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    prompt = wild.prompt(4, 5, IMAGE, 4)
    world = World(tmp_path, wild.shape, wild.twig, wild.vlm)
    (result,) = run(world.engine(twig=False), unpruned(wild, prompt, "hub"))
    assert result.token_ids == wild.generate(prompt, 24)
