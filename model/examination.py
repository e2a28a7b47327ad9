"""Whether an engine gives the same answers whichever way it takes to them.

The yardstick is the plainest way: one request at a time, one token a round. Speculation, batches and
resuming must give the same tokens. Where they part at a near-tie, logits as close as the number format
rounds them, that is reported and not a fault; anywhere else it is one.
Invariant: a fault, a crash included, becomes a check that names what was done; nothing is raised for it.
Knows the engine by its public methods alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from model.engine import Engine
from model.request import Request, Result, SamplingParams

BATCH = 8
# R-bar as a share of M: of the tier `fast`, as far as it is possible.
BUDGETS = {"unpruned": 1.0, "pruned": 1 / 9}
QUESTIONS = ("Describe the image.", "What is in the picture?")
# How far apart two logits may be, relative to the largest, for rounding to exchange them.
NEAR_TIE = {"float32": 1e-5, "float16": 2.0**-8, "bfloat16": 2.0**-5}

Tick = Callable[[int], object]


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str


def examine(
    engine: Engine,
    pictures: Sequence[Path],
    batch: int,
    max_tokens: int,
    tick: Tick = lambda _answers: None,
) -> list[Check]:
    """All checks of a loaded engine without work; those after one that broke the engine are left out."""
    return list(_Examination(engine, questions(pictures, batch, max_tokens), tick).checks())


def questions(pictures: Sequence[Path], count: int, max_tokens: int) -> list[Request]:
    """All different as far as pictures and questions go."""
    images = [_read(path) for path in pictures[:count]]
    return [
        Request(
            prompt=QUESTIONS[number // len(images) % len(QUESTIONS)],
            images=[images[number % len(images)]],
            sampling=SamplingParams(max_tokens=max_tokens),
        )
        for number in range(count)
    ]


def _read(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


class _Broken(Exception):  # noqa: N818 - ends the examination, not the program
    pass


class _Examination:
    def __init__(self, engine: Engine, requests: list[Request], tick: Tick) -> None:
        self.engine, self.requests, self.tick = engine, requests, tick
        self.tolerance = NEAR_TIE[engine.dtype]

    def checks(self) -> Iterator[Check]:
        card = self.engine.card
        prunes = card.retained_min < card.image_tokens
        try:
            for name, share in BUDGETS.items():
                if share == 1 or prunes:
                    yield from self._of_budget(f"{self.engine.dtype}, {name}", share)
        except _Broken as broken:
            yield broken.args[0]

    def _of_budget(self, name: str, share: float) -> Iterator[Check]:
        plain = [replace(request, retained_share=share, speculation=False) for request in self.requests]
        size = len(plain)
        yardstick = self._ask(f"{name}: plain", plain, batch=1)
        yield self._whole(f"{name}: plain", yardstick)
        resumed = [
            replace(request, resume_token_ids=tuple(result.token_ids[: len(result.token_ids) // 2]))
            for request, result in zip(plain, yardstick, strict=True)
        ]
        ways = [("resumed half-way", resumed, 1), (f"batch {size}", plain, size)]
        if self.engine.card.speculation:
            drafting = [replace(request, speculation=True) for request in plain]
            ways += [("speculation", drafting, 1), (f"speculation, batch {size}", drafting, size)]
        for way, requests, batch in ways:
            results = self._ask(f"{name}: {way}", requests, batch)
            yield self._compared(f"{name}: {way}", requests, yardstick, results)

    def _ask(self, name: str, requests: list[Request], batch: int) -> list[Result]:
        results: list[Result] = []
        try:
            for start in range(0, len(requests), batch):
                results += self.engine.generate(requests[start : start + batch])
                self.tick(batch)
        except Exception as error:  # after this the engine is worth nothing
            raise _Broken(Check(name, False, f"{type(error).__name__}: {error}")) from error
        return results

    def _whole(self, name: str, results: list[Result]) -> Check:
        """Every answer came to its end, and as many visual tokens were kept as the budget says."""
        fault = next(filter(None, map(_fault, results)), None)
        tokens = sum(len(result.token_ids) for result in results)
        kept = sorted({result.kept_tokens for result in results})
        detail = f"{len(results)} answers, {tokens} tokens, {', '.join(map(str, kept))} visual tokens kept"
        return Check(name, fault is None, fault or detail)

    def _compared(
        self, name: str, requests: list[Request], yardstick: list[Result], results: list[Result]
    ) -> Check:
        ties = []
        for number, (request, expected, got) in enumerate(zip(requests, yardstick, results, strict=True)):
            fault = _fault(got) or _other_picture(expected, got)
            if fault is None and not self.engine.governed:  # a governor may well end all drafting
                fault = _no_draft(request, got)
            if fault is None and got.token_ids != expected.token_ids:
                position, apart = self._parting(request, expected.token_ids, got.token_ids)
                ties.append(apart)
                if not apart <= self.tolerance:  # logits that are no numbers are no tie
                    fault = (
                        f"token {position} is another, and no tie: logits {apart:.2g} of the largest apart"
                    )
            if fault is not None:
                return Check(name, False, f"answer {number}: {fault}")
        return Check(name, True, _summary(results, ties))

    def _parting(self, request: Request, expected: list[int], got: list[int]) -> tuple[int, float]:
        """Where two answers part, and how far the lesser of the two tokens there is below the best one."""
        same = 0
        while same < min(len(expected), len(got)) and expected[same] == got[same]:
            same += 1
        if same == min(len(expected), len(got)):
            return same, float("inf")  # one goes on where the other ended
        prefix = tuple(expected[:same])
        logits = self.engine.next_logits(replace(request, resume_token_ids=prefix, speculation=False))
        lesser = min(logits[expected[same]], logits[got[same]])
        return same, float((logits.max() - lesser) / logits.abs().max())


def _fault(result: Result) -> str | None:
    if result.error is not None:
        return result.error
    if len(result.kept_indices) != result.kept_tokens:
        return f"{len(result.kept_indices)} visual tokens kept instead of {result.kept_tokens}"
    return None


def _other_picture(expected: Result, got: Result) -> str | None:
    return None if got.kept_indices == expected.kept_indices else "other visual tokens were kept"


def _no_draft(request: Request, result: Result) -> str | None:
    drafted = result.draft_tokens > 0 or not request.speculation or len(result.token_ids) < 3
    return None if drafted else "nothing was drafted"


def _summary(results: list[Result], ties: list[float]) -> str:
    same = f"{len(results) - len(ties)} of {len(results)} answers the same"
    if ties:
        same += f", {len(ties)} part at a near-tie (logits {max(ties):.2g} of the largest apart at most)"
    drafted, accepted = (
        sum(getattr(result, name) for result in results) for name in ("draft_tokens", "accepted_tokens")
    )
    return same + (f", {accepted / drafted:.0%} of {drafted} drafts accepted" if drafted else "")
