"""Our side: the engine driven round by round, its outputs timed as they leave `step`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from model.bench.measure import Arrivals, Limits
from model.bench.prompts import Prompt
from model.bench.roofline import Reading
from model.card import ModelCard
from model.engine import Engine
from model.request import Request, SamplingParams


@dataclass(frozen=True)
class Mode:
    """How the engine is asked. retained_tokens: R-bar; the image's whole M switches pruning off.

    retained_share: instead, where M differs from image to image.
    """

    retained_tokens: int | None
    speculation: bool
    retained_share: float | None = None

    @classmethod
    def of(cls, card: ModelCard, retained: int, speculation: bool) -> Mode:
        if card.image.dynamic is None:
            return cls(retained, speculation)
        return cls(None, speculation, retained / card.image_tokens)


class EngineSide:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(
        self, prompts: Sequence[Prompt], limits: Limits, mode: Mode, reading: Reading | None = None
    ) -> Arrivals:
        """reading: done once between any two rounds, in time that does not count."""
        sampling = SamplingParams(max_tokens=limits.max_tokens, ignore_eos=not limits.natural)
        requests = [
            Request(
                prompt_token_ids=prompt.ids,
                pixel_values=prompt.pixels,
                sampling=sampling,
                retained_tokens=mode.retained_tokens,
                retained_share=mode.retained_share,
                speculation=mode.speculation,
            )
            for prompt in prompts
        ]
        started_s = time.perf_counter()
        arrivals = Arrivals(started_s, [])
        rows = {self.engine.add(request): row for row, request in enumerate(requests)}
        aside_s = 0.0
        while self.engine.has_work():
            self._round(rows, arrivals, aside_s)
            aside_s += reading.once() if reading else 0.0
        return arrivals

    def _round(self, rows: dict[str, int], arrivals: Arrivals, aside_s: float) -> None:
        outputs = self.engine.step()
        at, got = time.perf_counter() - aside_s, [0] * len(rows)
        for output in outputs:
            got[rows[output.request_id]] += len(output.token_ids)
            if output.result is None:
                continue
            if output.result.error:
                raise RuntimeError(f"the engine failed in a benchmark: {output.result.error}")
            arrivals.draft_tokens += output.result.draft_tokens
            arrivals.accepted_tokens += output.result.accepted_tokens
        arrivals.events.append((at, got))
