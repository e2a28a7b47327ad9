"""python -m k8s.monitoring.draw PROMETHEUS FOLDER: each dashboard as a picture of what a Prometheus holds.

For documentation, where no Grafana is: the panels' own queries over the last minutes, in the panels' places.
"""

from __future__ import annotations

import argparse
import datetime
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from matplotlib.dates import DateFormatter
from matplotlib.figure import Figure

from k8s.monitoring.__main__ import DASHBOARDS
from k8s.monitoring.grafana import COLUMNS, Dashboard, Json

STEPS = 120
RATE_WINDOW = "30s"
VARIABLES = {"$namespace": ".*", "$instance": ".*", "$__rate_interval": RATE_WINDOW}
INCHES_PER_COLUMN, INCHES_PER_ROW = 0.62, 0.34
MAX_LINES = 12

Series = tuple[str, list[float], list[float]]  # legend, times, values


class Source:
    def __init__(self, url: str, minutes: float) -> None:
        self._url = url
        self.until = time.time()
        self.since = self.until - 60 * minutes

    def series(self, target: Json) -> Iterator[Series]:
        expr = target["expr"]
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        step = (self.until - self.since) / STEPS
        asked = {"query": expr, "start": self.since, "end": self.until, "step": step}
        answer = httpx.get(f"{self._url}/api/v1/query_range", params=asked, timeout=30, trust_env=False)
        for one in answer.raise_for_status().json()["data"]["result"]:
            times = [float(at) for at, _ in one["values"]]
            yield legend(target, one["metric"]), times, [float(value) for _, value in one["values"]]


def legend(target: Json, labels: dict[str, str]) -> str:
    text = str(target.get("legendFormat", ""))
    for name in ("instance", "worker", *labels):
        text = text.replace(f"{{{{{name}}}}}", labels.get(name, ""))
    return text.strip()


def draw(dashboard: Dashboard, source: Source) -> Figure:
    panels = dashboard.to_json()["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(COLUMNS * INCHES_PER_COLUMN, rows * INCHES_PER_ROW), dpi=70)
    for panel in panels:
        place = panel["gridPos"]
        left, width = place["x"] / COLUMNS, place["w"] / COLUMNS
        top, height = 1 - place["y"] / rows, place["h"] / rows
        if panel["type"] == "row":
            figure.text(0.005, top - 0.8 * height, panel["title"], fontsize=12, fontweight="bold")
            continue
        box = (left + 0.03, top - height + 0.9 / rows, width - 0.045, height - 1.9 / rows)
        _panel(figure.add_axes(box), panel, source)
    return figure


def _panel(axes: Any, panel: Json, source: Source) -> None:
    axes.set_title(panel["title"], fontsize=9, loc="left")
    found = [one for target in panel["targets"] for one in source.series(target)]
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] == "stat":
        latest = found[0][2][-1] if found else math.nan
        axes.text(0.5, 0.4, _number(latest, unit), ha="center", va="center", fontsize=18)
        axes.axis("off")
    elif panel["type"] == "table":
        rows = [[name, f"{numbers[-1]:g}"] for name, _, numbers in found]
        axes.axis("off")
        if rows:
            axes.table(rows, loc="upper center", colWidths=[0.8, 0.2])
    elif panel["type"] == "heatmap":
        _heat(axes, found)
    else:
        _lines(axes, found, stacked="stacking" in panel["fieldConfig"]["defaults"]["custom"])
        axes.set_ylabel("" if unit == "short" else unit, fontsize=7)


def _lines(axes: Any, found: list[Series], *, stacked: bool) -> None:
    drawn = sorted(found, key=lambda one: -_peak(one[2]))[:MAX_LINES]
    if stacked and drawn:
        times = sorted({at for _, when, _ in drawn for at in when})
        columns = [dict(zip(when, numbers, strict=True)) for _, when, numbers in drawn]
        heights = [[_finite(column.get(at, 0.0)) for at in times] for column in columns]
        axes.stackplot([_moment(at) for at in times], heights, labels=[one[0] for one in drawn], alpha=0.7)
    else:
        for name, times, numbers in drawn:
            axes.plot([_moment(at) for at in times], numbers, linewidth=1, label=name)
    axes.set_ylim(bottom=0)
    _clock(axes)
    if any(name for name, _, _ in drawn):
        axes.legend(fontsize=6, loc="upper left", ncols=2, framealpha=0.5)


def _heat(axes: Any, found: list[Series]) -> None:
    """Buckets are cumulated; what is drawn is each bucket less the one below it."""
    ordered = sorted(found, key=lambda one: float(one[0].replace("+Inf", "inf")))
    times = sorted({at for _, when, _ in ordered for at in when})
    below = dict.fromkeys(times, 0.0)
    grid = []
    for _, when, numbers in ordered:
        here = below | dict(zip(when, numbers, strict=True))
        grid.append([max(0.0, here[at] - below[at]) for at in times])
        below = here
    if not grid:
        return
    axes.pcolormesh([_moment(at) for at in times], range(len(grid)), grid, cmap="Oranges", shading="nearest")
    axes.set_yticks(range(len(ordered)), [name for name, _, _ in ordered], fontsize=5)
    _clock(axes)


def _clock(axes: Any) -> None:
    clock = DateFormatter("%H:%M", tz=datetime.UTC)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(clock)
    axes.tick_params(labelsize=6)


def _moment(at: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at, datetime.UTC)


def _peak(numbers: list[float]) -> float:
    return max((_finite(number) for number in numbers), default=0.0)


def _finite(number: float) -> float:
    return number if math.isfinite(number) else 0.0


def _number(number: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{number:.1%}"
    if unit == "s":
        return f"{1000 * number:.0f} ms" if number < 1 else f"{number:.1f} s"
    return f"{number:.3g}" + ("/s" if unit == "reqps" else "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="k8s.monitoring.draw", description=__doc__.partition("\n\n")[0])
    parser.add_argument("prometheus", help="its URL")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    said = parser.parse_args()
    source = Source(said.prometheus, said.minutes)
    said.folder.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        draw(dashboard, source).savefig(said.folder / f"{dashboard.uid.removeprefix('twigserve-')}.png")


if __name__ == "__main__":
    main()
