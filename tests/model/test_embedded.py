"""The shipped weights in fp32: the proofs made on tiny random ones, on real answers to the samples."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from model.bench.prompts import build_prompts
from model.checkpoint import EMBEDDED_BASE, EMBEDDED_TWIG
from model.request import Request
from tests.model.harness import Prompt, World, ask, run
from tests.model.tiny import Shape, TwigShape

MAX_TOKENS = 48


@pytest.fixture(scope="module")
def embedded() -> World:
    """Base and twig lie side by side, as in a tiny world."""
    known = json.loads((EMBEDDED_TWIG / "twig_config.json").read_text())
    twig = TwigShape(**{name: known[name] for name in TwigShape.__dataclass_fields__})
    vlm = LlavaForConditionalGeneration.from_pretrained(EMBEDDED_BASE, dtype=torch.float32).eval()
    text, vision = vlm.config.text_config, vlm.config.vision_config
    shape = Shape(layers=text.num_hidden_layers, grid=vision.image_size // vision.patch_size)
    return World(EMBEDDED_BASE.parent, shape, twig, vlm, AutoTokenizer.from_pretrained(EMBEDDED_BASE))


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [Prompt(prompt.ids, prompt.ids, prompt.pixels) for prompt in build_prompts(EMBEDDED_BASE, 4)]


def asked(prompts: list[Prompt], retained: int | None, *, speculation: bool) -> list[Request]:
    options = {"max_tokens": MAX_TOKENS, "retained": retained, "speculation": speculation}
    return [ask(prompt, f"r{index}", **options) for index, prompt in enumerate(prompts)]


def test_it_is_the_shape_that_was_promised(embedded: World) -> None:
    """576 visual tokens, 16 layers, K=1, T=2, F=12: R-bar 64 keeps 41."""
    assert embedded.shape.visual_tokens == 576
    assert embedded.shape.layers == 16
    twig = embedded.twig
    assert (twig.fork_layer, twig.twig_layers, twig.drop_layer) == (1, 2, 12)


def test_unpruned_plain_equals_generate(embedded: World, prompts: list[Prompt]) -> None:
    results = run(embedded.engine(), *asked(prompts, embedded.shape.visual_tokens, speculation=False))
    for prompt, result in zip(prompts, results, strict=True):
        assert result.token_ids == embedded.generate(prompt, MAX_TOKENS)


@pytest.mark.parametrize("retained", [576, 192, 64])
def test_speculation_changes_no_token(embedded: World, prompts: list[Prompt], retained: int) -> None:
    engine = embedded.engine()
    plain, fast = (run(engine, *asked(prompts, retained, speculation=flag)) for flag in (False, True))
    assert [result.token_ids for result in fast] == [result.token_ids for result in plain]
    assert sum(result.accepted_tokens for result in fast) > 0


def test_kept_tokens_and_first_words_equal_the_reference(embedded: World, prompts: list[Prompt]) -> None:
    engine, reference = embedded.engine(), embedded.reference()
    for prompt in prompts[:2]:
        expected = reference.generate(prompt.ids, prompt.pixels, retained=64, max_tokens=4)
        (result,) = run(engine, ask(prompt, max_tokens=4, retained=64))
        assert result.kept_indices == expected.indices
        assert len(result.kept_indices) == 41
        assert result.token_ids == expected.token_ids


def test_a_mixed_batch_equals_solo_runs(embedded: World, prompts: list[Prompt]) -> None:
    budgets = [64, 576, 128, 192, 64, 64, 576, 192]
    requests = [
        ask(
            prompts[index % len(prompts)],
            f"r{index}",
            max_tokens=8 + 4 * index,
            retained=retained,
            speculation=index % 3 != 2,
        )
        for index, retained in enumerate(budgets)
    ]
    together = run(embedded.engine(), *requests)
    alone = embedded.engine(max_batch=1)
    for request, result in zip(requests, together, strict=True):
        (single,) = run(alone, request)
        assert result.token_ids == single.token_ids
        assert result.kept_indices == single.kept_indices
        assert (result.draft_tokens, result.accepted_tokens) == (single.draft_tokens, single.accepted_tokens)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("image_cache_bytes", [0, 64 << 20])
def test_an_answer_in_bf16_does_not_depend_on_its_company(
    embedded: World, prompts: list[Prompt], image_cache_bytes: int
) -> None:
    """To the last bit: the tower took pictures together, and what was kept of one hung on the others."""
    shorter = [replace(prompt, short_ids=prompt.short_ids[:-3]) for prompt in prompts]
    requests = [
        ask(prompt, f"{number} at {retained}", max_tokens=16, retained=retained, **sampling)
        for retained, sampling in ((64, {}), (192, {"temperature": 0.9, "seed": 5}), (576, {}))
        for number, prompt in enumerate(prompts + shorter)
    ]
    alone = embedded.engine(dtype="bfloat16", max_batch=1, image_cache_bytes=0)
    together = embedded.engine(dtype="bfloat16", image_cache_bytes=image_cache_bytes, batch_invariant=True)
    for request, result in zip(requests, run(together, *requests), strict=True):
        (single,) = run(alone, request)
        assert result.token_scores == single.token_scores
        assert result.token_ids == single.token_ids
        assert (result.draft_tokens, result.accepted_tokens) == (single.draft_tokens, single.accepted_tokens)
