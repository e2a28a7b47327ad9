"""Speculation changes the cost and never the tokens; its accounting equals a cache-free recomputation."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.engine import Engine
from tests.model.harness import IMAGE, World, ask, drive, run
from tests.model.reference import Reference
from tests.model.tiny import Shape, TwigShape, with_draft

PARTS = [(5, IMAGE, 4), (IMAGE, 6), (3, IMAGE, 2, IMAGE, 4), (8,), (2, IMAGE)]


@pytest.mark.parametrize("share", [1.0, 0.6, 0.45])
def test_equals_plain_decoding(world: World, share: float) -> None:
    """share: R-bar as a part of M; 1 switches pruning off."""
    engine = world.engine()
    prompts = [world.prompt(seed, *parts) for seed in range(2) for parts in PARTS]
    requests = {
        flag: [
            ask(
                prompt,
                f"{index}-{flag}",
                max_tokens=20,
                retained=int(share * prompt.images * world.shape.visual_tokens) or None,
                speculation=flag,
            )
            for index, prompt in enumerate(prompts)
        ]
        for flag in (False, True)
    }
    plain, fast = run(engine, *requests[False]), run(engine, *requests[True])
    assert [result.token_ids for result in plain] == [result.token_ids for result in fast]
    assert [result.finish_reason for result in plain] == [result.finish_reason for result in fast]
    assert sum(result.draft_tokens for result in plain) == 0
    assert sum(result.accepted_tokens for result in fast) > 0


@pytest.mark.parametrize(("tokens", "threshold"), [(1, 0.0), (2, 0.5), (5, 0.6), (7, 0.1), (3, 1.0)])
def test_draft_length_and_threshold(tame: World, tmp_path: Path, tokens: int, threshold: float) -> None:
    """Tokens, drafts and acceptances equal the reference's for every gamma and theta."""
    world = tame.retwig(f"twig-{tokens}-{threshold}", with_draft(tame.twig, tokens, threshold))
    engine, reference = world.engine(), world.reference()
    for seed, retained in ((0, 16), (1, 8), (2, 6)):
        prompt = world.prompt(seed, 5, IMAGE, 4)
        expected = reference.generate(
            prompt.ids, prompt.pixels, retained=retained, max_tokens=20, speculation=True
        )
        (result,) = run(engine, ask(prompt, f"r{seed}", max_tokens=20, retained=retained))
        assert result.token_ids == expected.token_ids
        assert (result.draft_tokens, result.accepted_tokens) == (
            expected.draft_tokens,
            expected.accepted_tokens,
        )
        assert result.accepted_tokens > 0


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5, 6, 11])
def test_never_exceeds_max_tokens(tame: World, tame_reference: Reference, max_tokens: int) -> None:
    """A round drafts at most max_tokens - produced - 1, so that the verifier's own token still fits."""
    prompt = tame.prompt(0, 5, IMAGE, 4)
    expected = tame_reference.generate(
        prompt.ids, prompt.pixels, retained=8, max_tokens=max_tokens, speculation=True
    )
    (result,) = run(tame.engine(), ask(prompt, max_tokens=max_tokens, retained=8))
    assert result.token_ids == expected.token_ids
    assert (result.draft_tokens, result.accepted_tokens) == (expected.draft_tokens, expected.accepted_tokens)
    assert result.finish_reason == "length"


def test_a_wrong_twig_costs_time_and_no_token(tame: World, tmp_path: Path) -> None:
    world = World.create(tmp_path, tame.shape, with_draft(tame.twig, 4, 0.0), twig_noise=3.0)
    engine = world.engine()
    prompts = [world.prompt(seed, 5, IMAGE, 4) for seed in range(4)]
    fast = run(engine, *(ask(prompt, str(index), retained=16) for index, prompt in enumerate(prompts)))
    for prompt, result in zip(prompts, fast, strict=True):
        assert result.token_ids == world.generate(prompt, 16)
    assert sum(r.accepted_tokens for r in fast) < 0.2 * sum(r.draft_tokens for r in fast)


def test_a_perfect_twig_is_always_accepted(tmp_path: Path) -> None:
    """Upper layers that write nothing: the twig is the base. Long runs of full acceptance exercise the
    cache rows of the last draft, which no verify has touched yet."""
    world = World.create(tmp_path, Shape(seed=3, upper_scale=0.0), with_draft(TwigShape(), 5, 0.0))
    prompt = world.prompt(0, 5, IMAGE, 4)
    (result,) = run(world.engine(), ask(prompt, max_tokens=31, retained=16, ignore_eos=True))
    assert result.accepted_tokens == result.draft_tokens > 20
    assert result.accepted_per_position == [result.draft_rounds] * 5 or result.accepted_per_position[0] >= 5


def test_drafted_flags_follow_the_round(tame: World) -> None:
    """Within a round: accepted drafts first, then the base's own token; after a draft of EOS nothing."""
    engine: Engine = tame.engine()
    requests = [ask(tame.prompt(seed, 5, IMAGE, 4), str(seed), retained=16) for seed in range(6)]
    for trace in drive(engine, requests).values():
        for output in trace.outputs:
            if output.token_ids:
                assert output.drafted[:-1] == [True] * (len(output.drafted) - 1)
                ended = output.token_ids[-1] == tame.tokenizer.eos_token_id
                assert output.drafted[-1] is False or ended


def test_without_a_twig_speculation_is_off(wild: World) -> None:
    (result,) = run(wild.engine(twig=False), ask(wild.prompt(0, 5, IMAGE, 4), speculation=True))
    assert (result.draft_rounds, result.draft_tokens) == (0, 0)
    assert result.kept_tokens == wild.shape.visual_tokens
