"""The sweep runs on a tiny model, and its page shows every point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.bench import sweep
from model.bench.measure import Figures
from model.bench.sweep import AXES, MODES, Notes, OutOfTimeError, Plan, Point, row_of, run_sweep
from model.bench.sweep_report import write_report
from tests.model.harness import World


def test_a_point_for_every_value_and_one_change_at_a_time() -> None:
    points = Plan(AXES).points()
    assert len(points) == sum(len(values) for values in AXES.values())
    centre = Point()
    for axis, point in points:
        changed = {name for name in AXES if getattr(point, name) != getattr(centre, name)}
        assert changed <= {axis}


def test_what_the_governor_costs_is_told_within_a_repeat() -> None:
    """A machine that is twice as fast in one repeat tells nothing of the governor."""
    speeds = {"off": (100.0, 200.0, 100.0), "on": (90.0, 180.0, 90.0), "governed": (99.0, 198.0, 99.0)}
    found = {mode: [Figures(speed, 1.0, 0.5) for speed in of] for mode, of in speeds.items()}
    row = row_of("batch", Point(), found)
    assert row["governed_to_off"] == 0.99
    assert (row["off"], row["governed"]) == (100, 99)


def test_a_sweep_goes_on_where_it_was_broken_off(
    tame: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a point that two axes share is measured once."""
    monkeypatch.setattr(sweep, "find_model", lambda *_args: (tame.base_path, tame.twig_path))
    plan = Plan(
        {"batch": (1, 2), "answer_tokens": (6,)},
        Point(retained_tokens=8, answer_tokens=6),
        threads=1,
        repeats=1,
        dtype="float32",
    )
    path, measured = tmp_path / "deep" / "notes.jsonl", []
    one = sweep.Sweep.measure
    monkeypatch.setattr(
        sweep.Sweep, "measure", lambda self, point: measured.append(point) or one(self, point)
    )
    with pytest.raises(OutOfTimeError):
        run_sweep(["tiny"], plan, lambda _line: None, Notes(path), lambda: len(measured) == 1)
    report = run_sweep(["tiny"], plan, lambda _line: None, Notes(path))
    assert len(measured) == 2
    assert sorted(row["axis"] for row in report["results"]) == ["answer_tokens", "batch", "batch"]


def test_the_page(tame: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "find_model", lambda *_args: (tame.base_path, tame.twig_path))
    axes = {"batch": (1, 2), "draft_tokens": (1, 2)}
    plan = Plan(axes, Point(retained_tokens=8, answer_tokens=6), threads=1, repeats=1, dtype="float32")
    ticks: list[str] = []
    report = run_sweep(["tiny"], plan, ticks.append)
    assert len(ticks) == len(report["results"]) == 4
    for row in report["results"]:
        assert all(row[mode] > 0 for mode in MODES)
    page = write_report(report, tmp_path, "the command").read_text()
    assert "`the command`" in page
    assert page.count("## tiny") == 2
    assert (tmp_path / "performance.svg").read_text().startswith("<?xml")
    assert json.loads((tmp_path / "performance.json").read_text())["command"] == "the command"
