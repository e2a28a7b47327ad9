"""A twig for somebody's own base: the base read as the engine reads it, one run however it is cut into steps
and sittings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.engine import Engine, EngineConfig
from model.request import Request, SamplingParams
from model.train.conversations import Conversation, DataError
from model.train.lessons import Lessons, foresight, twig_loss
from model.train.own_twig import Machine, OwnTwigRun, TwigRecipe
from model.train.processes import ALONE
from model.train.twig_module import Twig
from model.train.under_pruning import pruning_loss
from model.words import Words
from tests.model.families import Family, write_llava_next, write_qwen
from tests.model.harness import World
from tests.model.readings import expanded, hub
from tests.model.said import ITEMS
from tests.model.tiny import Shape, TwigShape

CPU = torch.device("cpu")
SHAPE = Shape(max_len=512)
RECIPE = TwigRecipe(twig_layers=2, drop_layer=4, learning_rate=3e-3, batch=4, passes=12, foresight_weight=0.6)
MACHINE = Machine(micro_batch=1, workers=1, dtype="float32")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.create(tmp_path_factory.mktemp("own"), SHAPE, TwigShape())


FAMILIES: dict[str, Callable[[Path, Shape], Any]] = {
    "llava": lambda path, shape: World.create(path, shape, TwigShape()),
    "llava_next": write_llava_next,
    "qwen2_5_vl": write_qwen,
}


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World | Family:
    return FAMILIES[request.param](tmp_path_factory.mktemp(request.param), SHAPE)


def own_run(world: Any, conversations: Sequence[Conversation], runs: Path, **changes: Any) -> OwnTwigRun:
    return OwnTwigRun(world.base_path, conversations, runs, replace(RECIPE, **changes), MACHINE, ALONE)


def test_answers_alone_are_learned_and_the_prompt_is_the_engines(
    family: Any, conversations: list[Conversation]
) -> None:
    base = hub(family.base_path)
    tokenizer = base.words.tokenizer
    for conversation in conversations:
        dialogue = base.speaker.dialogue(conversation)
        pictures = int(conversation.picture is not None)
        prompt = base.words.prompt_token_ids(conversation.turns[0][0], pictures)
        first, _ = dialogue.answers[0]
        assert dialogue.ids[:first] == prompt
        for (start, end), (_, answer) in zip(dialogue.answers, conversation.turns, strict=True):
            assert tokenizer.decode(dialogue.ids[start : end - 1]).strip() == answer
            assert dialogue.ids[end - 1] == tokenizer.eos_token_id


def test_a_base_without_a_chat_template_speaks_plainly(
    world: World, conversations: list[Conversation]
) -> None:
    base = hub(world.base_path)
    base.words.processor = None
    base.words.tokenizer.chat_template = None
    dialogue = base.speaker.dialogue(conversations[1])
    text = base.words.tokenizer.decode(dialogue.ids)
    assert text == (
        "USER: <image>\na blue dog ASSISTANT: on the right</s>USER: is there a tree? ASSISTANT: yes</s>"
    )
    assert isinstance(base.words, Words)


def test_the_trunk_is_read_as_the_engine_reads_it(family: Any, conversations: list[Conversation]) -> None:
    """Pictures, positions and padding: equal to the plainest way, one conversation at a time."""
    base, plain = hub(family.base_path), _reference(family)
    examples = [base.example(conversation) for conversation in conversations]
    reading = base.read(examples, base.frozen(2, 4), 512)
    for b, example in enumerate(examples):
        ids = expanded(base, example)
        pixels = _pixels(family, example)
        expected = plain._trunk(ids, len(ids), pixels)[0].detach()
        torch.testing.assert_close(reading.hidden[b, : len(ids)], expected, atol=2e-5, rtol=1e-4)
        assert reading.visual[b].sum() == ids.count(base.config.image_token_id)


def _reference(family: Any) -> Any:
    if isinstance(family, World):
        return family.reference()
    return family.reference(family.base_path, family.twig_path, family.twig)


def _pixels(family: Any, example: Any) -> Any:
    if not example.pixels:
        return None
    return example.pixels["pixel_values"] if isinstance(family, World) else example.pixels


def _smoothed(look: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Each place becomes the mean of itself and its neighbours, diagonal ones too."""
    image = look.view(rows, columns)
    return torch.stack([
        image[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].mean()
        for y in range(rows) for x in range(columns)
    ])  # fmt: skip


def test_foresight_is_where_the_base_looks_most(world: World, conversations: list[Conversation]) -> None:
    """Of attention that transformers gives itself: every answer token's look by its own peak, over layers,
    smoothed and in stripes."""
    base = hub(world.base_path)
    example, frozen = base.example(conversations[0]), base.frozen(2, 4)
    reading = base.read([example], frozen, 512)
    (found,) = foresight(frozen, reading)
    base.vlm.set_attn_implementation("eager")
    ids = torch.tensor([expanded(base, example)])
    output = base.vlm(input_ids=ids, pixel_values=example.pixels["pixel_values"], output_attentions=True)
    looks = torch.zeros(len(reading.target_at), SHAPE.visual_tokens)
    for layer in (2, 3):
        look = output.attentions[layer][0].mean(0)[reading.target_at][:, reading.visual[0]]
        looks += look / look.sum(-1, keepdim=True)
    side = SHAPE.grid
    looks = torch.stack([_smoothed(_smoothed(look, side, side), side, side) for look in looks])
    expected = (looks / looks.amax(-1, keepdim=True)).amax(0) ** 4
    expected *= torch.exp(3 * (torch.arange(len(expected)).cos() - 1))
    torch.testing.assert_close(found[0], expected / expected.sum(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("draft", ["text", "base"])
def test_every_weight_of_the_twig_learns_and_none_of_the_base(
    world: World, conversations: list[Conversation], draft: Any
) -> None:
    base = hub(world.base_path)
    frozen = base.frozen(2, 4)
    reading = base.read([base.example(c) for c in conversations[5:8]], frozen, 512)
    twig = Twig(base.vlm, 2, 2)
    loss, _ = twig_loss(twig, frozen, reading, Lessons(draft), 0, 0.5)
    loss.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in twig.parameters())
    assert all(weight.grad is None for weight in base.vlm.parameters())


def test_what_pruning_costs_is_learned_in_every_family(
    family: Any, conversations: list[Conversation]
) -> None:
    """Several conversations, with and without a picture, of pictures of several sizes."""
    base = hub(family.base_path)
    frozen = base.frozen(2, 4)
    reading = base.read([base.example(c) for c in conversations[5:8]], frozen, 512)
    twig = Twig(base.vlm, 2, 2)
    _, ranks = twig(reading, True)
    loss = pruning_loss(frozen, reading, ranks, 0.5, torch.Generator().manual_seed(0))
    loss.backward()
    assert 0 < loss.item() < float("inf")
    assert twig.model.layers[-1].self_attn.q_proj.weight.grad.isfinite().all()
    assert twig.model.layers[-1].self_attn.q_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("draft", ["text", "base"])
def test_the_loss_falls_and_the_twig_runs_in_the_engine(
    family: Any, conversations: list[Conversation], tmp_path: Path, draft: Any
) -> None:
    run = own_run(family, conversations, tmp_path / "runs", draft=draft)
    losses = []
    step = run._step
    run._step = lambda number: losses.append(figures := step(number)) or figures  # type: ignore[method-assign]
    run.train()
    taught = [figures["loss"] for figures in losses]
    assert sum(taught[-6:]) < 0.8 * sum(taught[:6])
    run.write(tmp_path / "twig", draft_threshold=0.0)
    engine = Engine.from_pretrained(
        family.base_path, tmp_path / "twig", dtype="float32", config=EngineConfig(governor=False)
    )
    asked = Request("the red cat", [conversations[0].open_picture()], SamplingParams(max_tokens=8))
    (result,) = engine.generate([replace(asked, retained_share=0.6)])
    assert result.error is None
    assert result.kept_tokens < result.image_tokens
    assert result.draft_tokens > 0


def test_a_run_that_was_cut_off_goes_on_as_if_not(
    world: World, conversations: list[Conversation], tmp_path: Path
) -> None:
    whole = own_run(world, conversations, tmp_path / "whole", passes=2)
    whole.train()
    first = own_run(world, conversations, tmp_path / "parts", passes=2)
    first.machine = replace(MACHINE, save_s=0.0)
    step = first._step

    def cut_off(number: int) -> dict[str, float]:
        if number == 2:
            raise InterruptedError
        return step(number)

    first._step = cut_off  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        first.train()
    second = own_run(world, conversations, tmp_path / "parts", passes=2)
    second.train()
    for name, weight in whole.twig.state_dict().items():
        torch.testing.assert_close(second.twig.state_dict()[name], weight, msg=name, atol=0, rtol=0)
    with pytest.raises(ValueError, match=r"learning_rate 0\.003"):
        own_run(world, conversations, tmp_path / "parts", passes=2, learning_rate=1e-4).train()


def test_items_in_one_pass_or_several(
    world: World, conversations: list[Conversation], tmp_path: Path
) -> None:
    run = own_run(world, conversations, tmp_path, passes=3)
    taken = [item for step in range(run.steps) for item in run.items_of(step)]
    assert [taken.count(item) for item in range(len(ITEMS))] == [3] * len(ITEMS)
    with pytest.raises(ValueError, match="less than a batch of 9"):
        own_run(world, conversations, tmp_path, batch=9, passes=1)


def test_what_is_too_long_is_cut_but_not_its_picture(world: World, conversations: list[Conversation]) -> None:
    base = hub(world.base_path)
    frozen, example = base.frozen(2, 4), base.example(conversations[1])
    whole = base.read([example], frozen, 512)
    (_, end), (second, _) = example.dialogue.answers
    more = SHAPE.visual_tokens - 1
    cut = base.read([example], frozen, second + more)
    assert len(cut.target) == end - example.dialogue.answers[0][0]
    assert torch.equal(cut.target, whole.target[: len(cut.target)])
    nothing = base.read([example], frozen, SHAPE.visual_tokens + 8)
    loss, _ = twig_loss(Twig(base.vlm, 2, 2), frozen, nothing, Lessons(), 0, 1.0)
    assert loss.item() == 0
    with pytest.raises(DataError, match=r"item 1 .*picture ends behind the first 8 tokens"):
        base.read([example], frozen, 8)


def test_bfloat16_is_computed_in_and_written(
    world: World, conversations: list[Conversation], tmp_path: Path
) -> None:
    machine = replace(MACHINE, dtype="bfloat16", micro_batch=3)
    recipe = replace(RECIPE, passes=0.5, draft="base")
    run = OwnTwigRun(world.base_path, conversations, tmp_path, recipe, machine, ALONE)
    assert {weight.dtype for weight in run.twig.parameters()} == {torch.float32}
    run.train()
    run.write(tmp_path / "twig")
    written = load_file(tmp_path / "twig" / "model.safetensors")
    assert {weight.dtype for weight in written.values()} == {torch.bfloat16}
    assert all(torch.isfinite(weight).all() for weight in written.values())
