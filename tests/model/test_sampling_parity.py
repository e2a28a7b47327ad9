"""Sampled answers of whole engines: token for token a cache-free recomputation's, and distributed as p.

The recomputation has no rounds at all: at every position it settles the twig's guess by the rule of design
section 1, in plain arithmetic. So the tests also say that drafts, batches and resumptions change no text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from model.randomness import Sampler, sampler_of, seed_of
from model.request import Request, SamplingParams
from tests.model.harness import IMAGE, Prompt, World, ask, drive, run
from tests.model.reference import Reference
from tests.model.tiny import Shape, TwigShape, twig_tensors, with_draft, write_base, write_twig

WARM = {"temperature": 0.7, "top_k": 12, "top_p": 0.95}
# What differs from row to row of a batch: parameters, R-bar, speculation.
KINDS: list[tuple[dict[str, float], int | None, bool]] = [
    ({"temperature": 1.0}, 8, True),
    (WARM, None, True),
    ({"temperature": 0.4, "top_k": 3}, 16, True),
    ({"temperature": 0.0}, 8, True),
    ({"temperature": 1.2, "top_p": 0.8}, 8, False),
    ({"temperature": 0.9, "top_k": 40}, 9, True),
]


def distribution(logits: torch.Tensor, sampler: Sampler) -> list[float]:
    """transformers' processors over one row, as doubles."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampler.temperature)])
    if sampler.top_k:
        warpers.append(TopKLogitsWarper(sampler.top_k))
    if sampler.top_p < 1:
        warpers.append(TopPLogitsWarper(sampler.top_p))
    return warpers(torch.zeros(1, 1, dtype=torch.long), logits[None])[0].softmax(-1).tolist()


def walk(weights: Sequence[float], uniform: float) -> int:
    point = uniform * sum(weights)
    for token, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return token
    raise AssertionError("no weight left")


class Sampled:
    """One position after another, everything from the prompt anew."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def answer(self, prompt: Prompt, request: Request) -> list[int]:
        kept = self.reference.kept(prompt.ids, prompt.pixels, request.retained_tokens)
        sampling, output = request.sampling, []
        sampler = sampler_of(sampling, str(request.request_id))
        while len(output) < sampling.max_tokens and output[-1:] != [self.reference.eos]:
            logits = self.reference.next_logits(prompt.ids, output, prompt.pixels, kept)
            if sampler is None:
                output.append(int(logits.argmax()))
                continue
            p, chance = distribution(logits, sampler), sampler.uniforms(len(output))
            if request.speculation:
                drafted = self.reference.draft_logits(prompt.ids, output, prompt.pixels)
                q = distribution(drafted, sampler) + [0.0] * (len(p) - len(drafted))
                output.append(self._settle(p, q, chance.draft, chance.accept, chance.resample))
            else:
                output.append(walk(p, chance.draft))
        return output

    def _settle(self, p: list[float], q: list[float], draft: float, accept: float, resample: float) -> int:
        guess = walk(q, draft)
        if accept < min(1.0, p[guess] / q[guess]):
            return guess
        return walk([max(a - b, 0.0) for a, b in zip(p, q, strict=True)], resample)


def mixed(world: World, seed: int = 0, max_tokens: int = 8) -> list[tuple[Prompt, Request]]:
    """Six requests, one greedy and one without speculation among them."""
    made = []
    for index, (options, retained, speculation) in enumerate(KINDS):
        prompt = world.prompt(60 + index, 3 + index, IMAGE, 4)
        retained = 8 if retained is None else retained
        limits = {"max_tokens": max_tokens, "retained": retained, "speculation": speculation}
        made.append((prompt, ask(prompt, f"s{index}", seed=seed + index, **limits, **options)))
    return made


def requests_of(made: list[tuple[Prompt, Request]]) -> list[Request]:
    return [request for _, request in made]


@pytest.mark.parametrize("seed", [0, 100])
def test_a_batch_equals_the_plain_recomputation(world: World, seed: int) -> None:
    expected = Sampled(world.reference())
    made = mixed(world, seed)
    results = run(world.engine(), *requests_of(made))
    for (prompt, request), result in zip(made, results, strict=True):
        assert result.token_ids == expected.answer(prompt, request)
    assert sum(result.accepted_tokens for result in results) > 0
    assert len({tuple(result.token_ids) for result in results}) == len(results)


def test_a_twig_with_a_shorter_head(tmp_path: Path) -> None:
    """Ids the twig lacks are never drafted, and still as likely as the base has them."""
    shape, twig = Shape(seed=1, upper_scale=0.3), with_draft(TwigShape(), 4, 0.0)
    vlm = write_base(tmp_path / "base", shape)
    write_twig(tmp_path / "twig", vlm, twig, tensors=twig_tensors(vlm, twig, head_rows=200))
    world = World(tmp_path, shape, twig, vlm)
    expected, made = Sampled(world.reference()), mixed(world)
    results = run(world.engine(), *requests_of(made))
    for (prompt, request), result in zip(made, results, strict=True):
        assert result.token_ids == expected.answer(prompt, request)
    assert any(token >= 200 for result in results for token in result.token_ids)


@pytest.mark.parametrize("gap", [1, 3])
def test_the_same_seed_gives_the_same_text_in_any_company(tame: World, gap: int) -> None:
    made = mixed(tame, max_tokens=14)
    engine = tame.engine(max_batch=1)
    alone = {str(request.request_id): run(engine, request)[0] for request in requests_of(made)}
    arrivals = {gap * index: [request] for index, request in enumerate(requests_of(made)[::-1])}
    for name, trace in drive(tame.engine(max_batch=4), arrivals).items():
        assert trace.result.token_ids == alone[name].token_ids
        assert trace.result.text == alone[name].text
        assert trace.result.accepted_per_position == alone[name].accepted_per_position


@pytest.mark.parametrize(("tokens", "threshold"), [(1, 0.0), (2, 0.5), (7, 0.0), (3, 1.0)])
def test_where_rounds_end_changes_no_text(tame: World, tmp_path: Path, tokens: int, threshold: float) -> None:
    """Draft length and threshold move the rounds; every position is settled the same way all the same."""
    made = mixed(tame, max_tokens=14)
    world = tame.retwig(f"sampled-{tokens}-{threshold}", with_draft(tame.twig, tokens, threshold))
    expected, results = run(tame.engine(), *requests_of(made)), run(world.engine(), *requests_of(made))
    assert [result.token_ids for result in results] == [result.token_ids for result in expected]
    assert sum(r.draft_rounds for r in results) != sum(r.draft_rounds for r in expected) or tokens > 4


def test_a_smaller_max_tokens_gives_a_beginning(tame: World) -> None:
    whole = run(tame.engine(), *requests_of(mixed(tame, max_tokens=9)))
    for limit in (1, 2, 5):
        short = run(tame.engine(), *requests_of(mixed(tame, max_tokens=limit)))
        assert [r.token_ids for r in short] == [r.token_ids[:limit] for r in whole]


def test_resumed_at_every_cut_it_is_the_same_text(tame: World) -> None:
    """On another engine, as on another worker."""
    made = mixed(tame, seed=7, max_tokens=10)
    first, second = tame.engine(), tame.engine()
    for request, whole in zip(requests_of(made), run(first, *requests_of(made)), strict=True):
        cuts = [
            replace(request, request_id=f"cut {cut}", resume_token_ids=tuple(whole.token_ids[:cut]))
            for cut in range(len(whole.token_ids) + 1)
        ]
        for cut, trace in enumerate(drive(second, cuts).values()):
            assert trace.result.token_ids == whole.token_ids
            assert trace.token_ids == whole.token_ids[cut:]
            assert trace.result.text == whole.text


def test_seeds(tame: World) -> None:
    """Another seed, another text; without one it follows from the request's id."""
    prompt, engine = tame.prompt(1, 5, IMAGE, 4), tame.engine()

    def text(name: str, seed: int | None) -> list[int]:
        return run(engine, ask(prompt, name, retained=8, temperature=1.0, seed=seed))[0].token_ids

    assert text("a", 1) == text("b", 1) != text("a", 2)
    assert text("a", None) == text("a", None) == text("b", seed_of("a")) != text("b", None)
    assert text("a", 0) != text("a", None)


@pytest.mark.parametrize("temperature", [1e-9, 1e-5, 2e-4])
def test_as_temperature_falls_to_zero_the_text_becomes_greedy(tame: World, temperature: float) -> None:
    prompts = [tame.prompt(seed, 5, IMAGE, 4) for seed in range(4)]
    greedy, cold = (
        run(
            tame.engine(), *(ask(p, str(i), retained=8, temperature=t, seed=3) for i, p in enumerate(prompts))
        )
        for t in (0.0, temperature)
    )
    assert [result.token_ids for result in cold] == [result.token_ids for result in greedy]
    assert [result.accepted_tokens for result in cold] == [result.accepted_tokens for result in greedy]


# --- distribution ------------------------------------------------------------------------------------

COUNT, LENGTH, TOP_K = 900, 3, 3


def path_probabilities(reference: Reference, prompt: Prompt, retained: int, sampler: Sampler) -> Counter:
    """Of every answer of LENGTH tokens: what the pruned base says of it, one full recomputation a prefix."""
    kept = reference.kept(prompt.ids, prompt.pixels, retained)
    paths: Counter[tuple[int, ...]] = Counter({(): 1.0})
    for _ in range(LENGTH):
        longer: Counter[tuple[int, ...]] = Counter()
        for path, share in paths.items():
            p = distribution(reference.next_logits(prompt.ids, list(path), prompt.pixels, kept), sampler)
            for token, probability in enumerate(p):
                if probability:
                    longer[(*path, token)] = share * probability
        paths = longer
    return paths


def chi_square_p_value(observed: Counter, probabilities: Counter, total: int) -> float:
    """Cells that expect fewer than 8 are one. The statistic's tail by Wilson and Hilferty."""
    large = [path for path, share in probabilities.items() if share * total >= 8]
    cells = [(observed[path], probabilities[path] * total) for path in large]
    rest = total - sum(seen for seen, _ in cells), total - sum(expected for _, expected in cells)
    if rest[1] >= 1:
        cells.append(rest)
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    free = len(cells) - 1
    z = ((statistic / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))
    return 0.5 * math.erfc(z / math.sqrt(2))


@pytest.mark.parametrize("speculation", [True, False])
def test_the_first_tokens_are_distributed_as_the_pruned_base_says(
    tame: World, tame_reference: Reference, speculation: bool
) -> None:
    """Drafts on, pruning on, batches of 30; the same seeds every time, so it cannot flake."""
    prompt, retained = tame.prompt(4, 2, IMAGE, 2), 8
    options = {"temperature": 1.4, "top_k": TOP_K, "top_p": 0.97}
    requests = [
        ask(
            prompt,
            str(seed),
            max_tokens=LENGTH,
            retained=retained,
            seed=seed,
            ignore_eos=True,
            speculation=speculation,
            **options,
        )
        for seed in range(COUNT)
    ]
    results = run(tame.engine(max_batch=30), *requests)
    sampler = sampler_of(SamplingParams(**options), "")
    assert sampler is not None
    probabilities = path_probabilities(tame_reference, prompt, retained, sampler)
    observed = Counter(tuple(result.token_ids) for result in results)
    assert set(observed) <= set(probabilities)
    assert len(probabilities) > 8
    assert chi_square_p_value(observed, probabilities, COUNT) > 1e-4
    if speculation:
        drafted, accepted = sum(r.draft_tokens for r in results), sum(r.accepted_tokens for r in results)
        assert 0.1 * drafted < accepted < 0.95 * drafted
    wrong = Counter(dict(zip(probabilities, [*list(probabilities.values())[1:], 0.0], strict=True)))
    assert chi_square_p_value(observed, wrong, COUNT) < 1e-4
