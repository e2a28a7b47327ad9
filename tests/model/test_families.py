"""LLaVA-NeXT and Qwen2.5-VL: equal to transformers' `generate` unpruned, lossless drafts, M by the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from model.checkpoint import CheckpointError
from model.engine import Engine
from model.pruning import kept_budget, legal_range
from model.request import Request, RequestError, SamplingParams
from tests.model.families import Family, ask, write_llava_next, write_qwen
from tests.model.harness import run
from tests.model.tiny import Shape, write_twig

SHAPE = Shape(seed=3, upper_scale=0.5)
# Pictures no two of which take as many tokens, first in both shapes that a tower can get wrong.
LAYOUTS = {
    "wide": (3, (30, 62), 4),
    "tall, first": ((61, 23), 5),
    "two of different sizes": (2, (40, 40), 3, (20, 57), 4),
    "square, nearly last": (5, (47, 44), 1),
    "words alone": (7,),
}
WRITERS: dict[str, Callable[[Path, Shape], Family]] = {
    "llava_next": write_llava_next,
    "qwen2_5_vl": write_qwen,
}


@pytest.fixture(scope="module", params=WRITERS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param), SHAPE)


@pytest.fixture(scope="module")
def engine(family: Family) -> Engine:
    return family.engine()


def test_unpruned_equals_generate(family: Family, engine: Engine) -> None:
    questions = [family.question(seed, *parts) for seed, parts in enumerate(LAYOUTS.values())]
    requests = [
        ask(question, name, speculation=False) for name, question in zip(LAYOUTS, questions, strict=True)
    ]
    results = run(engine, *requests)
    for question, result in zip(questions, results, strict=True):
        assert result.token_ids == family.generate(question, 12)
        assert result.image_tokens == result.kept_tokens == question.image_tokens
    assert len({result.image_tokens for result in results}) == len(LAYOUTS)


def test_without_a_twig_equals_generate(family: Family) -> None:
    question = family.question(20, *LAYOUTS["two of different sizes"])
    (result,) = run(family.engine(twig=False), ask(question, "plain"))
    assert result.token_ids == family.generate(question, 12)


def test_pruned_with_drafts_equals_the_method_written_out(family: Family, engine: Engine) -> None:
    """Kept tokens keep their positions; a batch of mixed sizes; drafts change nothing."""
    reference = family.reference(family.base_path, family.twig_path, family.twig)
    questions = [family.question(40 + seed, *parts) for seed, parts in enumerate(LAYOUTS.values())]
    requests = [
        ask(question, f"{flag} {index}", retained_share=0.5, speculation=flag)
        for index, question in enumerate(questions)
        for flag in (False, True)
    ]
    results = {result.request_id: result for result in run(engine, *requests)}
    for index, question in enumerate(questions):
        plain, fast = results[f"False {index}"], results[f"True {index}"]
        expected = reference.generate(
            question.ids,
            question.tensors or None,
            retained=round(0.5 * question.image_tokens),
            max_tokens=12,
            speculation=True,
        )
        assert plain.token_ids == fast.token_ids == expected.token_ids
        assert plain.kept_indices == fast.kept_indices == expected.indices
        assert (fast.draft_tokens, fast.accepted_tokens) == (expected.draft_tokens, expected.accepted_tokens)
    assert sum(result.accepted_tokens for result in results.values()) > 0


@pytest.mark.parametrize("together", [False, True])
def test_a_batch_of_mixed_sizes_equals_each_alone(
    family: Family, engine: Engine, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Whether or not pictures share passes of the tower."""
    monkeypatch.setattr(engine._runner.vision, "together", together)
    questions = [family.question(60 + seed, *parts) for seed, parts in enumerate(LAYOUTS.values())]
    requests = [
        ask(question, str(index), retained_share=0.4 + 0.1 * index)
        for index, question in enumerate(questions)
    ]
    together = run(engine, *requests)
    alone = [run(engine, request)[0] for request in requests]
    for batched, single in zip(together, alone, strict=True):
        assert batched.token_ids == single.token_ids
        assert batched.kept_indices == single.kept_indices
        assert batched.draft_tokens == single.draft_tokens


def test_a_resumed_answer_goes_on_at_its_positions(family: Family, engine: Engine) -> None:
    question = family.question(5, *LAYOUTS["wide"])
    (whole,) = run(engine, ask(question, "whole", retained_share=0.5))
    request = replace(
        ask(question, "resumed", retained_share=0.5), resume_token_ids=tuple(whole.token_ids[:5])
    )
    (resumed,) = run(engine, request)
    assert resumed.token_ids == whole.token_ids


def test_prepared_pixels_are_the_same_question(family: Family, engine: Engine) -> None:
    """As a benchmark passes them: ids expanded, the processor's tensors."""
    question = family.question(6, *LAYOUTS["two of different sizes"])
    prepared = Request(
        prompt_token_ids=question.ids,
        pixel_values=question.tensors,
        sampling=SamplingParams(max_tokens=12),
        request_id="prepared",
    )
    theirs, ours = run(engine, prepared, ask(question, "pictures"))
    assert theirs.token_ids == ours.token_ids


def test_words_go_through_the_checkpoints_own_template(family: Family, engine: Engine) -> None:
    request = Request(
        "is there a cat?",
        [Image.new("RGB", (50, 41), "red")],
        SamplingParams(max_tokens=4),
        request_id="chat",
    )
    (result,) = run(engine, request)
    assert result.error is None
    assert result.image_tokens > 0
    assert len(result.token_ids) == 4 or result.finish_reason == "stop"


def test_an_impossible_budget_names_this_images_range(family: Family, engine: Engine) -> None:
    twig = family.twig
    for parts in ((3, (30, 62), 2), (3, (61, 23), 2)):
        question = family.question(7, *parts)
        count = question.image_tokens
        low, high = legal_range(SHAPE.layers, count, twig.fork_layer, twig.drop_layer)
        for retained in (low - 1, high + 1):
            with pytest.raises(RequestError, match=rf"{low}\.\.{high}, or be {count}") as raised:
                engine.add(ask(question, "bad", retained_tokens=retained))
            assert raised.value.param == "retained_tokens"
        (result,) = run(engine, ask(question, "good", retained_tokens=high, max_tokens=1))
        assert result.kept_tokens == kept_budget(high, SHAPE.layers, count, twig.fork_layer, twig.drop_layer)


@pytest.mark.parametrize(("share", "named"), [(0.0, "0.0"), (1.5, "1.5"), (-1, "-1")])
def test_a_share_that_is_none(family: Family, engine: Engine, share: float, named: str) -> None:
    with pytest.raises(RequestError, match=named) as raised:
        engine.add(ask(family.question(8, (30, 62), 3), "bad", retained_share=share))
    assert raised.value.param == "retained_share"


def test_a_share_out_of_reach_is_the_nearest_that_is_legal(family: Family, engine: Engine) -> None:
    """K layers see every token, so a thousandth cannot be had."""
    question = family.question(8, (30, 62), 3)
    least, most, all_of_it = run(
        engine,
        ask(question, "least", retained_share=0.001, max_tokens=1),
        ask(question, "most", retained_share=0.99, max_tokens=1),
        ask(question, "all", retained_share=1.0, max_tokens=1),
    )
    layers = (family.twig.fork_layer, family.twig.drop_layer)
    low, high = legal_range(SHAPE.layers, question.image_tokens, *layers)
    assert [result.kept_tokens for result in (least, most)] == [
        kept_budget(retained, SHAPE.layers, question.image_tokens, *layers) for retained in (low, high)
    ]
    assert least.token_scores is not None
    assert all_of_it.token_scores is None


def test_the_card_speaks_of_its_own_picture(family: Family, engine: Engine) -> None:
    """Of image.height x image.width the card's M and tiers are exact; a reader of the old fields is right."""
    card = engine.card
    assert card.image.dynamic is not None
    size = (card.image.height, card.image.width)
    assert family.question(9, size, 1).image_tokens == card.image_tokens
    assert card.default_retained == card.image_tokens
    assert card.quality["exact"] == card.image_tokens
    assert size[0] * size[1] <= card.image.dynamic.max_pixels


def test_no_picture_takes_more_than_the_card_says(family: Family, engine: Engine) -> None:
    adapter = engine._adapter
    sizes = [(height, width) for height in (20, 31, 64, 150, 400) for width in (20, 40, 64, 129, 500)]
    footprints = adapter.footprints([Image.new("RGB", (width, height)) for height, width in sizes])
    dynamic = engine.card.image.dynamic
    assert dynamic is not None
    # Where sides are multiples of one token's, other shapes can fill max_pixels better than the square.
    most = engine.card.image_tokens if dynamic.multiple == 1 else dynamic.max_pixels // dynamic.multiple**2
    assert max(footprint.tokens for footprint in footprints) <= most


def test_a_twig_with_a_budget_in_tokens_is_refused(family: Family, tmp_path: Path) -> None:
    """Tokens of which image? See docs/models.md."""
    twig = write_twig(tmp_path, family.vlm, replace(family.twig, retained_tokens=8))
    with pytest.raises(ValueError, match="retained_tokens must be null"):
        Engine.from_pretrained(family.base_path, twig, dtype="float32")


@pytest.mark.parametrize("given", [{}, {"pixel_values": [[0.0]]}, [1, 2]])
def test_pixel_values_without_their_sizes(family: Family, engine: Engine, given: object) -> None:
    request = replace(ask(family.question(1, (30, 62), 3), "bad"), images=[], pixel_values=given)
    with pytest.raises(RequestError) as raised:
        engine.add(request)
    assert raised.value.param == "pixel_values"


def test_sizes_that_do_not_fit_the_pixel_values(family: Family, engine: Engine) -> None:
    question = family.question(1, (30, 62), 3)
    name = next(name for name in question.tensors if name != "pixel_values")
    for wrong in (question.tensors[name] * 0, question.tensors[name][:0]):
        tensors = question.tensors | {name: wrong}
        with pytest.raises(RequestError):
            engine.add(replace(ask(question, "bad"), images=[], pixel_values=tensors))


def test_llava_next_ends_in_its_image(tmp_path: Path) -> None:
    family = write_llava_next(tmp_path, SHAPE)
    question = family.question(3, 5, (33, 47))
    (result,) = run(family.engine(), ask(question, "last"))
    assert result.token_ids == family.generate(question, 12)


def test_llava_next_with_a_mistral_decoder(tmp_path: Path) -> None:
    family = write_llava_next(tmp_path, SHAPE, mistral=True)
    question = family.question(3, *LAYOUTS["wide"])
    plain, fast = run(
        family.engine(), ask(question, "plain", speculation=False), ask(question, "fast", speculation=True)
    )
    assert plain.token_ids == fast.token_ids == family.generate(question, 12)


@pytest.mark.parametrize("option", [{"image_fit": "pad"}, {"max_image_tokens": 9}])
def test_options_of_other_families(tmp_path: Path, option: dict[str, object]) -> None:
    family = write_llava_next(tmp_path, SHAPE)
    with pytest.raises((ValueError, CheckpointError), match=next(iter(option))):
        family.engine(**option)
