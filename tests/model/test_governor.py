"""The governor alone: a machine whose rounds cost what the test says, no tensors, no waiting."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from model.governor import TRIAL_ROUNDS, Acceptance, Governor
from tests.model.harness import World, drive, run
from tests.model.test_batching import mixed

Cost = Callable[[int, int], float]  # (rows, limit) -> seconds of a round


class Machine:
    """Accepts `share` of all drafts, and takes the time it is told to."""

    def __init__(self, cost: Cost, share: float = 0.7, most: int = 5) -> None:
        self.now, self.cost, self.share = 0.0, cost, share
        self.governor = Governor(most, lambda: self.now)
        self.tokens, self._luck = 0.0, random.Random(1)

    def round(self, rows: int) -> int:
        limit = self.governor.begin(rows)
        self.now += self.cost(rows, limit)
        accepted = [self._accepted(limit) for _ in range(rows)]
        self.governor.end(accepted)
        self.tokens += sum(accepted) + rows
        return limit

    def _accepted(self, limit: int) -> int:
        return next((i for i in range(limit) if self._luck.random() >= self.share), limit)

    def run(self, rows: int, rounds: int = 300) -> list[int]:
        return [self.round(rows) for _ in range(rounds)]


def memory_bound(_rows: int, limit: int) -> float:
    """A draft costs a sixth of a verify, whose width is free."""
    return 1.0 + limit / 6


def compute_bound(rows: int, limit: int) -> float:
    return rows * (1 + limit) * 0.1 + limit / 6


def test_drafts_stay_where_they_pay() -> None:
    limits = Machine(memory_bound).run(1)
    assert min(limits[2 * TRIAL_ROUNDS :]) >= 2


def test_drafting_ends_where_it_costs() -> None:
    limits = Machine(compute_bound).run(8)
    assert limits[:TRIAL_ROUNDS] == [5] * TRIAL_ROUNDS
    assert limits[40:].count(0) > 0.9 * len(limits[40:])


def test_a_limit_in_the_middle_is_found() -> None:
    """Wide verifies are free up to four tokens a row, then dear."""
    limits = Machine(lambda _rows, limit: 1.0 + limit / 8 + 2.0 * max(0, limit - 3), share=0.8).run(1)
    assert max(set(limits), key=limits.count) == 3


def test_poor_acceptance_ends_drafting() -> None:
    limits = Machine(memory_bound, share=0.05).run(1, 600)
    assert limits[100:].count(0) > 0.8 * len(limits[100:])


@pytest.mark.parametrize(("rows", "cost"), [(1, memory_bound), (8, compute_bound), (8, memory_bound)])
def test_never_far_below_the_best_fixed_limit(rows: int, cost: Cost) -> None:
    """After it has looked around once: what the sweep asks of it."""
    best = max(sum(0.7**i for i in range(limit + 1)) * rows / cost(rows, limit) for limit in range(6))
    machine = Machine(cost)
    machine.run(rows, 200)
    tokens, started = machine.tokens, machine.now
    machine.run(rows, 2000)
    assert (machine.tokens - tokens) / (machine.now - started) > 0.97 * best


def test_a_twig_that_has_to_catch_up_makes_trials_rare() -> None:
    """A trial after many rounds without drafts reads what the twig has not: at 8 rows six rounds' time.

    Judged by its later rounds alone such a trial looked cheap, came every 64 rounds, and took a tenth.
    """
    behind = 0

    def cost(rows: int, limit: int) -> float:
        nonlocal behind
        caught_up = 0.2 * min(behind, 32) if limit else 0.0
        behind = 0 if limit else behind + 1
        return compute_bound(rows, limit) + caught_up

    machine = Machine(cost)
    machine.run(8, 200)
    tokens, started = machine.tokens, machine.now
    machine.run(8, 1000)
    assert (machine.tokens - tokens) / (machine.now - started) > 0.97 * 8 / compute_bound(8, 0)


def test_batch_sizes_are_judged_apart_and_learn_from_their_neighbours() -> None:
    machine = Machine(
        lambda rows, limit: compute_bound(rows, limit) if rows > 4 else memory_bound(rows, limit)
    )
    machine.run(8)
    machine.run(1)
    assert machine.round(7) == 0  # as 8, without a look at 5 first
    assert machine.round(2) > 0


def test_noise_alone_moves_nothing() -> None:
    """Limits within the hysteresis: one that was left for a lower one is not taken again."""
    machine = Machine(lambda _rows, limit: 1.0 + sum(0.7**i for i in range(1, limit + 1)))
    limits = machine.run(1)
    assert len([1 for a, b in pairwise(limits[60:]) if a != b]) <= 8


def test_a_clock_too_coarse_for_a_round() -> None:
    """Rounds of no seconds at all: no division by them, where a load takes its costs from a neighbour's."""
    machine = Machine(lambda _rows, _limit: 0.0)
    for rows in (8, 7, 6, 5):
        machine.run(rows, 40)


def test_a_round_that_failed_is_forgotten() -> None:
    machine = Machine(memory_bound)
    machine.governor.begin(1)
    machine.now += 1e9
    assert min(machine.run(1)[2 * TRIAL_ROUNDS :]) >= 2


def test_acceptance_by_position() -> None:
    acceptance = Acceptance(3)
    for _ in range(500):
        acceptance.observe(3, 1)
    assert acceptance.tokens(1) == pytest.approx(2, abs=0.01)
    assert acceptance.tokens(3) == pytest.approx(2, abs=0.05)


def test_no_result_depends_on_it(tame: World) -> None:
    """A clock that makes drafts look dear, and one that makes them look free."""
    plain = [result.token_ids for result in run(tame.engine(), *mixed(tame))]
    for cost in (compute_bound, memory_bound):
        engine = tame.engine(governor=True)
        machine = Machine(cost, most=engine._runner.draft_tokens)
        engine._rounds.governor = Script(machine)
        traces = drive(engine, mixed(tame))
        assert [trace.result.token_ids for trace in traces.values()] == plain


class Script(Governor):
    """Limits that jump about, so that twigs fall behind and catch up."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(4, lambda: machine.now)
        self.turn = 0

    def begin(self, rows: int, cached_tokens: int = 0) -> int:
        super().begin(rows, cached_tokens)
        self.turn += 1
        self._given = (0, 0, 3, 1, 0, 4)[self.turn % 6]
        return self._given


def test_pruned_and_unpruned_batches_have_costs_of_their_own() -> None:
    """Drafts that pay on long caches were kept on short ones, where they cost: one size, one memory."""
    now = 0.0
    governor = Governor(4, lambda: now)
    for _ in range(60):
        for cached, draft_s in ((5000, 0.01), (600, 1.0)):
            limit = governor.begin(8, cached)
            now += 1.0 + draft_s * limit
            governor.end([limit] * 8)
    assert governor.begin(8, 5000) == 4
    assert governor.begin(8, 600) == 0
