"""What one request came to, and what all of them come to: percentiles, goodput, rates.

Knows nothing of how requests were sent. `due_s` and `end_s` count from the start of the measurement.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENTILES = (50, 95, 99)


@dataclass
class Sample:
    """error: its code, None for an answer. Latencies count from when the request was due, sent or not.

    gaps_s: between tokens, one an output token after the first event; empty for a client that reads slowly.
    """

    due_s: float
    end_s: float = 0.0
    error: str | None = None
    ttft_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    image_tokens: int = 0
    pruned_tokens: float = 0.0

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.due_s


@dataclass(frozen=True)
class Objective:
    """What makes an answer good: its first token within ttft_s, the others on average itl_s apart."""

    ttft_s: float
    itl_s: float

    def met_by(self, sample: Sample) -> bool:
        if sample.error is not None or sample.ttft_s is None:
            return False
        gaps = sample.gaps_s
        return sample.ttft_s <= self.ttft_s and (not gaps or sum(gaps) / len(gaps) <= self.itl_s)


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank, the least value that so many percent do not exceed; 0 of nothing."""
    if not values:
        return 0.0
    return sorted(values)[max(1, math.ceil(percent * len(values) / 100)) - 1]


def milliseconds(values_s: Iterable[float]) -> dict[str, float]:
    values = list(values_s)
    return {f"p{percent}": round(1000 * percentile(values, percent), 1) for percent in PERCENTILES}


def summary(samples: Sequence[Sample], seconds: float, objective: Objective) -> dict[str, Any]:
    """seconds: how long requests were sent. Rates of answers are over the time until the last of them."""
    answered = [sample for sample in samples if sample.error is None]
    lasted_s = max([seconds, *(sample.end_s for sample in samples)])
    good = sum(objective.met_by(sample) for sample in samples)
    errors = collections.Counter(sample.error for sample in samples if sample.error is not None)
    return {
        "requests": len(samples),
        "errors": sum(errors.values()),
        "errors_by_code": dict(errors.most_common()),
        "offered_per_s": round(len(samples) / seconds, 3),
        "answered_per_s": round(len(answered) / lasted_s, 3),
        "goodput_per_s": round(good / lasted_s, 3),
        "good_share": round(good / len(samples), 4) if samples else 0.0,
        "slo": {"ttft_ms": 1000 * objective.ttft_s, "itl_ms": 1000 * objective.itl_s},
        "ttft_ms": milliseconds(sample.ttft_s for sample in answered if sample.ttft_s is not None),
        "itl_ms": milliseconds(gap for sample in answered for gap in sample.gaps_s),
        "e2e_ms": milliseconds(sample.e2e_s for sample in answered),
        "tokens_per_s": round(sum(sample.tokens for sample in samples) / lasted_s, 1),
        "tokens_per_answer": _share(sum(sample.tokens for sample in answered), len(answered)),
        "acceptance": _share(sum(s.accepted for s in answered), sum(s.drafted for s in answered)),
        "pruned_ratio": _share(sum(s.pruned_tokens for s in answered), sum(s.image_tokens for s in answered)),
    }


def steps(
    samples: Sequence[Sample], seconds: float, objective: Objective, count: int = 8
) -> list[dict[str, Any]]:
    """Equal parts of the measurement, by when requests were due: what was offered, how much was good."""
    width = seconds / count
    parts: list[list[Sample]] = [[] for _ in range(count)]
    for sample in samples:
        parts[min(count - 1, int(sample.due_s / width))].append(sample)
    return [
        {
            "from_s": round(number * width, 1),
            "offered_per_s": round(len(part) / width, 3),
            "good_share": _share(sum(map(objective.met_by, part)), len(part)),
            "ttft_ms": milliseconds(sample.ttft_s for sample in part if sample.ttft_s is not None),
        }
        for number, part in enumerate(parts)
    ]


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0
