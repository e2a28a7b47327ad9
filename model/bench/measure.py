"""What one timed run of one side gives, and the decode rate that both sides are judged by.

Invariant: both sides are reduced to the same raw fact, "at this moment these rows got so many tokens",
and the figures come from it in this file alone, so that neither side can be counted more kindly.
Knows neither transformers nor the engine.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How long answers are: natural ones end at their EOS, forced ones at max_tokens alone."""

    max_tokens: int
    natural: bool


@dataclass
class Arrivals:
    """One run of one batch. events: (moment in s, tokens that each row got at it, in row order)."""

    started_s: float
    events: list[tuple[float, list[int]]]
    draft_tokens: int = 0
    accepted_tokens: int = 0

    def _first_token_at(self) -> list[float]:
        rows = len(self.events[0][1])
        return [next(at for at, got in self.events if got[row]) for row in range(rows)]

    @property
    def first_token_s(self) -> list[float]:
        """Row by row, from the start of the run to its first token."""
        return [at - self.started_s for at in self._first_token_at()]

    @property
    def decode(self) -> tuple[int, float]:
        """(tokens, seconds) after the moment at which the last row had its first token.

        All that came up to then is prefill: also the drafts accepted in the round of the first token.
        """
        opened_s = max(self._first_token_at())
        later = [(at, sum(got)) for at, got in self.events if at > opened_s]
        closed_s = max((at for at, got in later if got), default=opened_s)
        return sum(got for _, got in later), closed_s - opened_s

    @property
    def tokens(self) -> int:
        return sum(sum(got) for _, got in self.events)


@dataclass(frozen=True)
class Figures:
    """One repeat of one method: its batches together.

    bandwidth: bytes a second that the memory gave meanwhile; roofline: the share of it that was reached.
    """

    tokens_per_s: float
    ttft_ms: float
    acceptance: float | None
    bandwidth: float | None = None
    roofline: float | None = None

    @classmethod
    def of(cls, runs: Sequence[Arrivals]) -> Figures:
        tokens = sum(run.decode[0] for run in runs)
        seconds = sum(run.decode[1] for run in runs)
        drafts = sum(run.draft_tokens for run in runs)
        first = [moment for run in runs for moment in run.first_token_s]
        return cls(
            tokens_per_s=tokens / seconds if seconds else 0.0,
            ttft_ms=1e3 * statistics.mean(first),
            acceptance=sum(run.accepted_tokens for run in runs) / drafts if drafts else None,
        )

    @classmethod
    def median(cls, repeats: Sequence[Figures]) -> Figures:
        def middle(values: Iterable[float | None]) -> float | None:
            known = [value for value in values if value is not None]
            return statistics.median(known) if known else None

        return cls(
            tokens_per_s=statistics.median(figures.tokens_per_s for figures in repeats),
            ttft_ms=statistics.median(figures.ttft_ms for figures in repeats),
            acceptance=middle(figures.acceptance for figures in repeats),
            bandwidth=middle(figures.bandwidth for figures in repeats),
            roofline=middle(figures.roofline for figures in repeats),
        )
