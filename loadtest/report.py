"""The HTML report of one load test: the numbers as a table, the samples as plots, all in one file."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from loadtest.sample import Sample

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem 1rem .2rem 0; text-align: left }}
td {{ font-variant-numeric: tabular-nums }} svg {{ width: 100%; height: auto }}
</style>
<h1>{title}</h1>
<p>{text}</p>
<table>{rows}</table>
{plots}
<p><a href="locust.html">Locust's own report</a></p>
<details><summary>JSON</summary><pre>{raw}</pre></details>
</html>
"""
SHOWN = (
    *("requests", "offered_per_s", "answered_per_s", "goodput_per_s", "good_share", "slo", "errors_by_code"),
    *("ttft_ms", "itl_ms", "e2e_ms", "tokens_per_s", "tokens_per_answer", "acceptance", "pruned_ratio"),
)


def page(title: str, text: str, result: dict[str, Any], samples: Sequence[Sample]) -> str:
    rows = "".join(f"<tr><th>{name}<td>{html.escape(_text(result[name]))}" for name in SHOWN)
    plots = "".join((_latencies(samples), _distribution(samples), _steps(result["steps"])))
    raw = html.escape(json.dumps(result, indent=1))
    return PAGE.format(title=html.escape(title), text=html.escape(text), rows=rows, plots=plots, raw=raw)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {inner:g}" for key, inner in value.items()) or "none"
    return f"{value:g}"


def _latencies(samples: Sequence[Sample]) -> str:
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    answered = [sample for sample in samples if sample.error is None]
    failed = [sample for sample in samples if sample.error is not None]
    axes.plot(
        [one.due_s for one in answered], [one.ttft_s or 0 for one in answered], ".", label="first token"
    )
    axes.plot([one.due_s for one in answered], [one.e2e_s for one in answered], ".", label="whole answer")
    axes.plot([one.due_s for one in failed], [0] * len(failed), "rx", label="error")
    axes.set(xlabel="due at, s", ylabel="s", title="Each request")
    axes.legend(loc="upper left", fontsize="small")
    return _svg(figure)


def _distribution(samples: Sequence[Sample]) -> str:
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    answered = [sample for sample in samples if sample.error is None]
    _cumulated(left, [one.ttft_s for one in answered if one.ttft_s is not None], "first token")
    _cumulated(left, [one.e2e_s for one in answered], "whole answer")
    left.set(xlabel="s", ylabel="share of the answers", title="Latency")
    _cumulated(right, [1000 * gap for one in answered for gap in one.gaps_s], "between tokens")
    right.set(xlabel="ms", title="Between tokens")
    for axes in (left, right):
        axes.legend(loc="lower right", fontsize="small")
    return _svg(figure)


def _cumulated(axes: Any, values: list[float], label: str) -> None:
    shares = [(number + 1) / len(values) for number in range(len(values))]
    axes.plot(sorted(values), shares, drawstyle="steps-post", label=label)


def _steps(steps: Sequence[dict[str, Any]]) -> str:
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    places = [step["from_s"] for step in steps]
    width = 0.9 * (places[1] - places[0])
    offered = [step["offered_per_s"] for step in steps]
    good = [step["offered_per_s"] * step["good_share"] for step in steps]
    axes.bar(places, offered, width, align="edge", color="lightgrey", label="offered")
    axes.bar(places, good, width, align="edge", label="within the objective")
    axes.set(xlabel="due at, s", ylabel="requests/s", title="Goodput")
    axes.legend(loc="upper left", fontsize="small")
    return _svg(figure)


def _svg(figure: Figure) -> str:
    data = io.StringIO()
    figure.savefig(data, format="svg")
    return data.getvalue().partition("<svg")[1] + data.getvalue().partition("<svg")[2]
