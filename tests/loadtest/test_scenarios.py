"""Arrivals: as many as asked, in order, the same for the same seed."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from loadtest.scenarios import BURST_EVERY_S, SCENARIOS, Scenario, bursts, ramp

RATE, SECONDS = 5.0, 400.0


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda one: one.name)
def test_arrivals_are_ordered_distinct_repeatable_and_about_as_many_as_asked(scenario: Scenario) -> None:
    times = list(scenario.arrivals(random.Random(1), RATE, SECONDS))
    assert times == sorted(set(times))
    assert times[-1] < SECONDS
    assert times == list(scenario.arrivals(random.Random(1), RATE, SECONDS))
    expected = 1.125 if scenario.arrivals is ramp else 1.0
    assert len(times) == pytest.approx(expected * RATE * SECONDS, rel=0.1)
    assert scenario.ask(random.Random(2)) == scenario.ask(random.Random(2))


def test_a_ramp_ends_with_eight_times_what_it_began_with() -> None:
    times = list(ramp(random.Random(1), RATE, SECONDS))
    first, last = (sum(low <= at < low + 80 for at in times) for low in (0, SECONDS - 80))
    assert first / 80 == pytest.approx((0.25 + 0.175) * RATE, rel=0.2)
    assert last / 80 == pytest.approx((2 - 0.175) * RATE, rel=0.2)


def test_a_burst_comes_at_once() -> None:
    times = list(bursts(random.Random(1), RATE, SECONDS))
    together = sum(BURST_EVERY_S / 2 <= at < BURST_EVERY_S / 2 + 0.1 for at in times)
    assert together >= RATE * BURST_EVERY_S / 2


def test_the_readme_lists_every_scenario_and_what_it_offers() -> None:
    page = (Path(__file__).resolve().parents[2] / "loadtest/README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) \|$", page, re.MULTILINE)
    assert {name: float(share) for name, share in rows} == {one.name: one.share for one in SCENARIOS.values()}
