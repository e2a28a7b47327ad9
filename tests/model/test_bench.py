"""The benchmark counts both sides by one rule, and its report has the promised shape on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from model.bench import METHODS, BenchConfig, print_table, run_bench
from model.bench.generate import GenerateSide
from model.bench.measure import Arrivals, Figures, Limits
from model.bench.prompts import Prompt, pictures
from tests.model.families import Family, write_llava_next, write_qwen
from tests.model.harness import IMAGE, World
from tests.model.tiny import Shape

ROW = {
    "model", "dtype", "threads", "batch", "method", "retained_tokens", "tokens_per_s", "ttft_ms",
    "acceptance", "ratio", "roofline",
}  # fmt: skip


def test_decode_rate_opens_when_the_last_row_has_its_first_token() -> None:
    """Two rows; the second starts a round later. What came before it started is prefill."""
    run = Arrivals(10.0, [(11.0, [1, 0]), (12.0, [2, 1]), (13.0, [1, 3]), (14.0, [0, 2]), (15.0, [0, 0])])
    assert run.first_token_s == [1.0, 2.0]
    assert run.decode == (6, 2.0)
    assert run.tokens == 10


def test_a_one_token_answer_has_no_decode_time() -> None:
    run = Arrivals(0.0, [(0.5, [1])])
    assert run.decode == (0, 0.0)
    assert Figures.of([run]).tokens_per_s == 0.0


def test_figures_pool_the_runs_and_take_medians() -> None:
    runs = [
        Arrivals(0.0, [(1.0, [1]), (2.0, [4])], draft_tokens=4, accepted_tokens=3),
        Arrivals(0.0, [(2.0, [1]), (5.0, [2])], draft_tokens=4, accepted_tokens=1),
    ]
    figures = Figures.of(runs)
    assert figures == Figures(tokens_per_s=6 / 4, ttft_ms=1500.0, acceptance=0.5)
    slow, fast = Figures(1.0, 9000.0, None), Figures(9.0, 1.0, 0.75)
    assert Figures.median([fast, slow, figures]) == Figures(1.5, 1500.0, 0.625)


def test_pictures_come_from_the_samples_or_are_drawn(tmp_path: Path) -> None:
    drawn = pictures(3, tmp_path)
    assert len({picture.tobytes() for picture in drawn}) == 3
    assert [picture.tobytes() for picture in pictures(3, tmp_path)] == [p.tobytes() for p in drawn]
    Image.new("RGB", (7, 5), "red").save(tmp_path / "a.png")
    assert [picture.size for picture in pictures(2, tmp_path)] == [(7, 5), (7, 5)]


@pytest.mark.parametrize(
    "bad",
    [
        {"methods": ("warp",)},
        {"methods": ()},
        {"batch": ()},
        {"batch": (0,)},
        {"repeats": 0},
        {"max_tokens": 1},
    ],
)
def test_configurations_that_cannot_be(bad: dict[str, tuple[object, ...] | int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad)).rstrip("s")):
        BenchConfig(**bad)


def test_pruning_and_speculation_need_a_twig(wild: World) -> None:
    with pytest.raises(ValueError, match="twig"):
        run_bench(BenchConfig(str(wild.base_path), methods=("plain", "ssd")))


@pytest.mark.parametrize("natural", [True, False])
def test_generate_counts_no_padding(tame: World, natural: bool) -> None:
    """A row that has ended rides along in the batch and gives nothing; forced rows all reach the limit."""
    side, limits = GenerateSide(tame.base_path, "float32", "cpu"), Limits(24, natural=natural)
    asked = [tame.prompt(seed, 5, IMAGE, 4) for seed in range(6)]
    prompts = [Prompt(prompt.ids, prompt.pixels) for prompt in asked]
    lengths = [len(tame.generate(prompt, 24)) for prompt in asked]
    assert min(lengths) < 24
    run = side.run(prompts, limits)
    rows = [sum(got[row] for _, got in run.events) for row in range(6)]
    assert rows == (lengths if natural else [24] * 6)


@pytest.fixture(scope="module")
def report(tame: World) -> dict[str, list[dict[str, object]]]:
    config = BenchConfig(
        str(tame.base_path),
        str(tame.twig_path),
        batch=(1, 3),
        max_tokens=6,
        dtype="float32",
        threads=1,
        repeats=1,
        pictures=2,
    )
    lines: list[str] = []
    report = run_bench(config, lambda line, _share: lines.append(line))
    assert len(lines) > 10
    return report


@pytest.mark.parametrize("write", [write_llava_next, write_qwen])
def test_pictures_of_their_own_size(write: Callable[[Path, Shape], Family], tmp_path: Path) -> None:
    """Both sides answer the same prompts, alone and in a batch, whatever the family's tower takes."""
    family = write(tmp_path, Shape(upper_scale=0.5, max_len=1024))
    config = BenchConfig(
        str(family.base_path),
        str(family.twig_path),
        batch=(1, 2),
        max_tokens=4,
        methods=("generate", "generate_batched", "plain", "ttp_ssd"),
        dtype="float32",
        threads=1,
        repeats=1,
        pictures=2,
    )
    rows = run_bench(config)["results"]
    assert all(row["tokens_per_s"] > 0 for row in rows)
    assert len(rows) == 6


def test_report(report: dict[str, list[dict[str, object]]], capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert report.keys() == {"machine", "results"}
    rows = report["results"]
    assert all(row.keys() == ROW for row in rows)
    cases = {(row["method"], row["batch"]) for row in rows}
    assert cases == {
        *((method, 1) for method in METHODS if method != "generate_batched"),
        *((method, 3) for method in METHODS if method != "generate"),
    }
    print_table(report)
    assert "ttp_ssd" in capsys.readouterr().out


def test_report_says_what_was_done(report: dict[str, list[dict[str, object]]]) -> None:
    by_case = {(row["method"], row["batch"]): row for row in report["results"]}
    assert by_case["generate", 1]["ratio"] == 1.0
    for (method, _), row in by_case.items():
        assert row["tokens_per_s"] > 0
        assert row["ttft_ms"] > 0
        # With drafts it may be none as well: the governor's choice, where they cost what they bring.
        assert method in {"ssd", "ttp_ssd"} or row["acceptance"] is None
        assert (row["roofline"] is not None) == (method == "plain")
        assert row["retained_tokens"] == (8 if method.startswith("ttp") else 16)
