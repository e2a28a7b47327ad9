"""What a set of samples comes to."""

from __future__ import annotations

import pytest

from loadtest.sample import Objective, Sample, percentile, steps, summary

OBJECTIVE = Objective(ttft_s=1.0, itl_s=0.1)


def answer(due_s: float, ttft_s: float = 0.5, gap_s: float = 0.05) -> Sample:
    return Sample(
        due_s,
        due_s + ttft_s + 4 * gap_s,
        ttft_s=ttft_s,
        gaps_s=[gap_s] * 4,
        tokens=5,
        drafted=4,
        accepted=3,
        image_tokens=100,
        pruned_tokens=60,
    )


def test_percentiles_are_samples() -> None:
    """Caught once: the rank above, so that p99 of a hundred values was their greatest."""
    assert [percentile(range(1, 101), percent) for percent in (50, 95, 99)] == [50, 95, 99]
    assert [percentile([1.0, 2.0, 3.0], percent) for percent in (0, 50, 67, 100)] == [1, 2, 3, 3]
    assert percentile([3.0], 99) == 3.0
    assert percentile([], 50) == 0.0


def test_good_answers_keep_both_limits_and_errors_are_never_good() -> None:
    samples = [answer(0), answer(1, ttft_s=2), answer(2, gap_s=0.3), Sample(3, 3.1, error="queue_full")]
    result = summary(samples, 8.0, OBJECTIVE)
    assert (result["requests"], result["errors"], result["errors_by_code"]) == (4, 1, {"queue_full": 1})
    assert result["good_share"] == 0.25
    assert result["goodput_per_s"] == pytest.approx(1 / 8)
    assert result["ttft_ms"]["p50"] == 500
    assert result["ttft_ms"]["p99"] == 2000
    assert result["itl_ms"]["p99"] == 300
    assert (result["acceptance"], result["pruned_ratio"]) == (0.75, 0.6)
    assert result["tokens_per_s"] == pytest.approx(15 / 8, abs=0.05)


def test_rates_last_until_the_last_answer() -> None:
    """A service that falls behind would else look as fast as what it was offered."""
    assert summary([answer(9.5, ttft_s=9.8)], 10.0, OBJECTIVE)["answered_per_s"] == pytest.approx(
        0.05, abs=0.002
    )


def test_nothing_sent_is_no_division_by_zero() -> None:
    assert summary([], 10.0, OBJECTIVE)["acceptance"] == 0
    assert [step["good_share"] for step in steps([], 10.0, OBJECTIVE, 2)] == [0, 0]


def test_steps_hold_what_was_due_in_them() -> None:
    parts = steps([answer(1), answer(2, ttft_s=5), answer(9.99)], 10.0, OBJECTIVE, 2)
    assert [(part["from_s"], part["good_share"]) for part in parts] == [(0.0, 0.5), (5.0, 1.0)]
