"""The tensors and the chance of sampling: processors as transformers', rejection exactly without loss."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from model.randomness import Draw, Sampler, sampler_of, seed_of
from model.request import SamplingParams
from model.sampling import Lottery, distributions, pick, settle, warp

CPU = torch.device("cpu")
bounded = settings(max_examples=60)


def theirs(logits: Tensor, sampler: Sampler) -> Tensor:
    """One row through transformers' own processors, in the order in which `generate` applies them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampler.temperature)])
    if sampler.top_k:
        warpers.append(TopKLogitsWarper(sampler.top_k))
    if sampler.top_p < 1:
        warpers.append(TopPLogitsWarper(sampler.top_p))
    return warpers(torch.zeros(1, 1, dtype=torch.long), logits[None])[0]


samplers = st.builds(
    Sampler,
    temperature=st.sampled_from([0.01, 0.3, 0.7, 1.0, 1.3, 2.0, 7.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 39, 40, 41, 10**9]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    seed=st.just(0),
)


@bounded
@given(st.lists(samplers, min_size=1, max_size=6), st.integers(0, 2**31))
def test_processors_equal_transformers_row_by_row(rows: list[Sampler], seed: int) -> None:
    logits = 4 * torch.randn(len(rows), 40, generator=torch.Generator().manual_seed(seed))
    before = logits.clone()
    warped = warp(logits, rows)
    for row, sampler in enumerate(rows):
        assert torch.equal(warped[row], theirs(logits[row], sampler))
    assert torch.equal(logits, before)
    assert torch.allclose(distributions(logits, rows).sum(-1), torch.ones(len(rows)))


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (0, 0.2), (50, 0.9), (2000, 0.999), (0, 0.9999)])
def test_processors_equal_transformers_over_a_large_vocabulary(top_k: int, top_p: float) -> None:
    """Peaked rows, whose nucleus is found without sorting, beside a flat one, which is sorted.

    At the nucleus' edge the two may differ by tokens that weigh less than transformers' sums are rounded.
    """
    scales = torch.tensor([8.0, 3.0, 0.1, 5.0])[:, None]
    logits = scales * torch.randn(4, 9000, generator=torch.Generator().manual_seed(5))
    sampler = Sampler(0.8, top_k, top_p, 0)
    expected = torch.stack([theirs(row, sampler) for row in logits])
    warped = warp(logits, [sampler] * 4)
    differing = (warped != expected) * (logits / 0.8).softmax(-1)
    assert float(differing.sum(-1).max()) < 1e-5
    alone = torch.cat([warp(row[None], [sampler]) for row in logits])
    assert torch.equal(alone, warped)


def test_of_equal_logits_top_k_keeps_all() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]])
    assert torch.equal(warp(logits, [Sampler(1.0, 2, 1.0, 0)])[0], theirs(logits[0], Sampler(1.0, 2, 1.0, 0)))


def grid(count: int) -> Tensor:
    """The midpoints of so many equal parts of (0, 1): as points to pick from, an exact integral."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_pick_gives_each_token_its_exact_share() -> None:
    weights = torch.tensor([0.0, 2.0, 0.0, 5.0, 1.0, 0.0])
    picked = pick(weights.expand(800, -1), grid(800))
    assert Counter(picked.tolist()) == {1: 200, 3: 500, 4: 100}


def test_pick_at_the_ends() -> None:
    ends = torch.tensor([2.0**-49, 1 - 2.0**-49], dtype=torch.float64)
    assert pick(torch.tensor([0.0, 1 / 3, 1 / 3, 1 / 3, 0.0]).expand(2, -1), ends).tolist() == [1, 3]


def sixths(*counts: int) -> Tensor:
    return torch.tensor(counts, dtype=torch.float32) / sum(counts)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ((3, 2, 1, 0), (1, 2, 3, 0)),
        ((1, 1, 1, 1), (4, 0, 0, 0)),
        ((0, 0, 0, 4), (1, 1, 1, 1)),
        ((4, 0, 0, 0), (0, 2, 2, 0)),
        ((1, 2, 1, 0), (1, 2, 1, 0)),
        ((1, 3, 0, 4), (5, 2, 1, 0)),
    ],
)
def test_settle_is_distributed_as_p_whatever_q_is(p: tuple[int, ...], q: tuple[int, ...]) -> None:
    """Every combination of draft, acceptance and residual, on grids that divide all the shares exactly.

    p and q have denominators 4, 6 or 8, so p/q has one that divides 120, and the residual one that
    divides 24 * 5.
    """
    base, twig, fine = sixths(*p), sixths(*q), 120
    drafts = pick(twig.expand(24, -1), grid(24))
    outcomes: Counter[int] = Counter()
    for guess in drafts.tolist():
        accept, resample = (
            axis.reshape(-1) for axis in torch.meshgrid(grid(fine), grid(fine), indexing="ij")
        )
        tokens = settle(
            base.expand(fine**2, -1),
            twig.expand(fine**2, -1),
            torch.full((fine**2,), guess),
            accept,
            resample,
        )
        outcomes.update(tokens.tolist())
    total = 24 * fine**2
    for token, count in enumerate(p):
        assert Fraction(outcomes[token], total) == Fraction(count, sum(p))


@bounded
@given(st.integers(0, 2**31))
def test_a_rejected_guess_never_comes_back(seed: int) -> None:
    """So a draft that equals the base's token is an accepted one, and `accept` needs to know no more."""
    draw = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, 50, 9, generator=draw).softmax(-1)
    guesses = pick(q, torch.rand(50, generator=draw, dtype=torch.float64))
    accept, resample = torch.rand(2, 50, generator=draw, dtype=torch.float64)
    at = guesses[:, None]
    taken = accept < (p.gather(1, at).double() / q.gather(1, at).double())[:, 0]
    assert torch.equal(settle(p, q, guesses, accept, resample) == guesses, taken)


def test_a_twig_whose_logits_are_no_numbers_is_not_believed() -> None:
    p, q = torch.tensor([[0.97, 0.03, 0.0]]), torch.full((1, 3), torch.nan)
    half = torch.tensor([0.5], dtype=torch.float64)
    assert settle(p, q, torch.tensor([2]), half, half).tolist() == [0]


def test_nothing_left_of_the_residual_falls_back_to_p() -> None:
    """q above p by rounding alone, at the one token there is."""
    p, q = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0 + 1e-6]])
    near_one = torch.tensor([1 - 1e-9], dtype=torch.float64)
    assert settle(p, q, torch.tensor([1]), near_one, near_one).tolist() == [1]


def test_uniforms_are_a_function_of_seed_and_position() -> None:
    """Pinned: an answer begun by one release must go on under the next."""
    sampler = Sampler(1.0, 0, 1.0, seed=7)
    assert sampler.uniforms(3) == Sampler(0.5, 4, 0.9, seed=7).uniforms(3)
    first = sampler.uniforms(0)
    assert [round(value, 6) for value in (first.draft, first.accept, first.resample)] == PINNED
    seen = [
        value
        for seed in range(40)
        for position in range(40)
        for value in vars(Sampler(1.0, 0, 1.0, seed).uniforms(position)).values()
    ]
    assert len(set(seen)) == 40 * 40 * 3
    assert all(0 < value < 1 for value in seen)
    tenths = Counter(int(10 * value) for value in seen)
    assert max(tenths.values()) - min(tenths.values()) < 0.2 * len(seen) / 10


PINNED = [0.671638, 0.843973, 0.532825]


def test_the_seed_of_a_request() -> None:
    warm = SamplingParams(temperature=0.5, top_k=3, top_p=0.9)
    assert sampler_of(warm, "a") == Sampler(0.5, 3, 0.9, seed_of("a"))
    assert seed_of("a") != seed_of("b")
    assert sampler_of(SamplingParams(temperature=0.5, seed=0), "a") == Sampler(0.5, 0, 1.0, 0)
    assert sampler_of(SamplingParams(temperature=1e-6, seed=0), "a") is None
    largest = sampler_of(SamplingParams(temperature=1.0, seed=2**64 - 1), "a")
    assert largest is not None
    assert 0 < largest.uniforms(10**6).draft < 1


def lottery_round(draws: list[Draw | None], twig: Tensor, base: Tensor, width: int) -> list[int]:
    """Every row is asked for width guesses and as many tokens, out of the same logits at each step."""
    lottery, slots = Lottery(draws, CPU), list(range(len(draws)))
    for _ in range(width):
        lottery.guess(twig, slots)
    return lottery.choose(base.repeat_interleave(width, 0), [width] * len(draws))


def test_a_twig_with_a_shorter_vocabulary_loses_nothing() -> None:
    """Its missing ids have q = 0 and come from the residual alone. Chi-square, 5 tokens, 4 free degrees."""
    draw = torch.Generator().manual_seed(1)
    count, base, twig = 4000, torch.randn(1, 5, generator=draw), torch.randn(1, 3, generator=draw)
    draws: list[Draw | None] = [Draw(Sampler(0.8, 0, 1.0, seed), 0, True) for seed in range(count)]
    tokens = lottery_round(draws, twig.expand(count, -1), base.expand(count, -1), 1)
    expected = (base[0] / 0.8).softmax(-1) * count
    observed = torch.bincount(torch.tensor(tokens), minlength=5)
    assert float(((observed - expected) ** 2 / expected).sum()) < 23.5  # p = 1e-4


def test_greedy_rows_pass_through_a_sampled_round() -> None:
    draw = torch.Generator().manual_seed(2)
    twig, base = torch.randn(3, 6, generator=draw), torch.randn(3, 6, generator=draw)
    draws = [None, Draw(Sampler(1.0, 0, 1.0, 4), 0, True), None]
    lottery = Lottery(draws, CPU)
    guesses, probabilities = lottery.guess(twig, [0, 1, 2])
    assert (guesses[0], guesses[2]) == (int(twig[0].argmax()), int(twig[2].argmax()))
    raw = twig.softmax(-1)[range(3), guesses]
    assert probabilities == pytest.approx(raw.tolist(), rel=1e-5)
    choices = lottery.choose(base, [1, 1, 1])
    assert (choices[0], choices[2]) == (int(base[0].argmax()), int(base[2].argmax()))
