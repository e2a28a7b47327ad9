"""How decode speed grows with batch, R-bar, drafts, prompt and answer: three modes at every point.

One thing is changed at a time from a centre. The modes take turns, each point is warmed up once, answers are
forced to their length, and figures are medians, of ratios within each repeat too. What pictures leave in
trunk and twig is remembered between runs, so that the time goes to decoding.
`python -m model.bench.sweep`; `sweep_report` writes the table.
Each finished point is a line of a file: a sweep that was broken off, or out of `--seconds`, goes on there.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.bench.config import BenchConfig
from model.bench.measure import Figures, Limits
from model.bench.ours import EngineSide, Mode
from model.bench.prompts import Prompt, build_prompts
from model.bench.report import machine
from model.bench.run import find_model
from model.bench.sweep_report import write_report
from model.engine import Engine, EngineConfig

MODES = ("off", "on", "governed")


@dataclass(frozen=True)
class Point:
    """retained_tokens: R-bar; draft_tokens: the most a round; prompt_tokens: text beyond the question's."""

    batch: int = 1
    retained_tokens: int = 64
    draft_tokens: int = 5
    prompt_tokens: int = 0
    answer_tokens: int = 64


# Each value is tried alone, the rest at the centre.
AXES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16),
    "retained_tokens": (64, 128, 192, 576),
    "draft_tokens": (1, 2, 3, 5, 8),
    "prompt_tokens": (0, 256, 1024),
    "answer_tokens": (16, 64, 256),
}


@dataclass(frozen=True)
class Plan:
    """axes: see AXES; threads, repeats, dtype: as in the benchmark. centre: what an axis does not change."""

    axes: dict[str, tuple[int, ...]]
    centre: Point = Point()
    threads: int = 2
    repeats: int = 2
    dtype: str = "auto"

    def points(self) -> list[tuple[str, Point]]:
        found = [
            (axis, replace(self.centre, **{axis: value}))
            for axis, values in self.axes.items()
            for value in values
        ]
        # Points with the same drafts one after the other: each number of drafts is an engine of its own.
        return sorted(found, key=lambda entry: entry[1].draft_tokens)


class Sweep:
    """One model. At most two engines are loaded at a time, with the governor and without."""

    def __init__(self, base: Path, twig: Path, plan: Plan) -> None:
        self.base, self.twig, self.plan = base, twig, plan
        self.most = max([*plan.axes.get("batch", ()), plan.centre.batch])
        self.prompts = build_prompts(base, self.most)
        self._sides = cache(self._load)
        self._loaded = 0
        self.dtype = plan.dtype  # the engine's own, once there is one

    def side(self, draft_tokens: int, governed: bool) -> EngineSide:
        if draft_tokens != self._loaded:
            self._sides.cache_clear()
            self._loaded = draft_tokens
        return self._sides(draft_tokens, governed)

    def _load(self, draft_tokens: int, governed: bool) -> EngineSide:
        config = EngineConfig(
            max_batch=self.most, threads=self.plan.threads, draft_tokens=draft_tokens, governor=governed
        )
        return EngineSide(Engine.from_pretrained(self.base, self.twig, dtype=self.plan.dtype, config=config))

    def measure(self, point: Point) -> dict[str, list[Figures]]:
        """Repeat by repeat: speculation off, on, and on under the governor."""
        prompts = [self._longer(prompt, point.prompt_tokens) for prompt in self.prompts[: point.batch]]
        limits = Limits(point.answer_tokens, natural=False)
        found: dict[str, list[Figures]] = {mode: [] for mode in MODES}
        for repeat in range(self.plan.repeats + 1):
            for mode in MODES:
                side = self.side(point.draft_tokens, mode == "governed")
                self.dtype = side.engine.dtype
                asked = Mode.of(side.engine.card, point.retained_tokens, mode != "off")
                run = side.run(prompts, limits, asked)
                if repeat:
                    found[mode].append(Figures.of([run]))
        return found

    def _longer(self, prompt: Prompt, extra: int) -> Prompt:
        """Random words before the last token: ids of the question's own kind."""
        words = [token for token in prompt.ids if prompt.ids.count(token) == 1] or prompt.ids[-1:]
        more = random.Random(0).choices(words, k=extra)
        return Prompt([*prompt.ids[:-1], *more, prompt.ids[-1]], prompt.pixels)


def row_of(axis: str, point: Point, found: dict[str, list[Figures]]) -> dict[str, Any]:
    """governed_to_off: within each repeat, whose runs follow one another; a machine's moods last longer."""
    figures = {mode: Figures.median(repeats) for mode, repeats in found.items()}
    acceptance = figures["on"].acceptance
    pairs = zip(found["governed"], found["off"], strict=True)
    ratios = [governed.tokens_per_s / off.tokens_per_s for governed, off in pairs if off.tokens_per_s]
    return {
        "axis": axis,
        **asdict(point),
        **{mode: round(one.tokens_per_s, 2) for mode, one in figures.items()},
        "acceptance": None if acceptance is None else round(acceptance, 3),
        "governed_to_off": round(statistics.median(ratios), 3) if ratios else None,
    }


class Notes:
    """Finished points by model and point, each written down at once. path None: in memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.rows[self._key(row["model"], row)] = row

    @staticmethod
    def _key(model: str, point: dict[str, Any]) -> tuple[Any, ...]:
        return (model, *(point[field.name] for field in fields(Point)))

    def get(self, model: str, point: Point) -> dict[str, Any] | None:
        """A point that several axes share is measured once."""
        return self.rows.get(self._key(model, asdict(point)))

    def put(self, model: str, point: Point, row: dict[str, Any]) -> None:
        self.rows[self._key(model, asdict(point))] = row
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


class OutOfTimeError(Exception):
    """What is finished is in the notes."""


def run_sweep(
    models: Sequence[str],
    plan: Plan,
    tick: Callable[[str], None],
    notes: Notes | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Raises OutOfTimeError between two points."""
    notes = notes or Notes()
    with tempfile.TemporaryDirectory() as scratch:
        results = [
            row
            for model in models
            for row in _sweep_model(model, plan, Path(scratch), tick, notes, out_of_time)
        ]
    spread = statistics.median(row["governed_to_off"] or 1.0 for row in results)
    return {
        "machine": machine(plan.threads) | {"repeats": plan.repeats, "dtype": results[0]["dtype"]},
        "median_governed_to_off": round(spread, 3),
        "results": results,
    }


def _sweep_model(
    model: str,
    plan: Plan,
    scratch: Path,
    tick: Callable[[str], None],
    notes: Notes,
    out_of_time: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    sweep = None
    for axis, point in plan.points():
        row = notes.get(model, point)
        if row is None:
            if out_of_time():
                raise OutOfTimeError
            sweep = sweep or _sweep_of(model, plan, scratch)
            found = sweep.measure(point)
            row = {"model": model, "dtype": sweep.dtype} | row_of(axis, point, found)
            notes.put(model, point, row)
        yield row | {"axis": axis}
        tick(f"{model} {axis}")


def _sweep_of(model: str, plan: Plan, scratch: Path) -> Sweep:
    base, twig = find_model(BenchConfig(model=model), scratch, lambda _line, _share: None)
    if twig is None:
        raise ValueError(f"{model} has no twig: there is nothing to sweep")
    return Sweep(base, twig, plan)


def main() -> None:
    parser = argparse.ArgumentParser(description="Decode speed over batch, R-bar, drafts, prompt and answer.")
    parser.add_argument("--model", action="append", help="embedded, mid; repeatable; embedded by default")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where performance.md goes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two points an axis: does it run")
    parser.add_argument("--notes", type=Path, default=Path("build/sweep.jsonl"), help="finished points")
    parser.add_argument("--seconds", type=float, help="stop after the point in which they end")
    options = parser.parse_args()
    axes = {axis: values[:2] for axis, values in AXES.items()} if options.quick else AXES
    models = options.model or ["embedded"]
    plan = Plan(axes, threads=options.threads, repeats=options.repeats)
    with tqdm(total=len(models) * len(plan.points()), unit="point") as bar:

        def tick(line: str) -> None:
            bar.set_description_str(line)
            bar.update()

        end_s = time.monotonic() + (options.seconds or float("inf"))
        try:
            report = run_sweep(models, plan, tick, Notes(options.notes), lambda: time.monotonic() > end_s)
        except OutOfTimeError:
            sys.exit(f"out of time; run it again to go on from {options.notes}")
    command = " ".join(["python -m model.bench.sweep", *(f"--model {model}" for model in models)])
    print(write_report(report, options.out, command))


if __name__ == "__main__":
    main()
