"""Dashboards as values, and the JSON that Grafana reads (schema 39, Grafana 10 to 12).

Invariant: panels fill rows of 24 columns from left to right and never overlap; ids count from 1; the same
value gives the same JSON, byte for byte. Knows nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

COLUMNS = 24
SCHEMA_VERSION = 39
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
HEIGHTS = {"timeseries": 8, "heatmap": 8, "stat": 4, "table": 8}

Kind = Literal["timeseries", "stat", "heatmap", "table"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """legend: Grafana's format, e.g. `{{instance}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """unit: Grafana's id (s, percentunit, reqps, ...). limit: where the colour turns, red from it up.

    below: the limit is a floor, red under it. stacked: areas on top of each other.
    """

    title: str
    text: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    limit: float | None = None
    below: bool = False
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Dashboard:
    """choices: labels by which the reader narrows it, each with the metric whose values are offered."""

    uid: str
    title: str
    text: str
    rows: Sequence[Row]
    choices: Sequence[tuple[str, str]] = ()

    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]

    def to_json(self) -> Json:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.text,
            "tags": ["twigserve"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "links": [_siblings()],
            "templating": {"list": [_source(), *(_choice(*one) for one in self.choices)]},
            "annotations": {"list": []},
            "panels": _placed(self.rows),
        }


def _placed(rows: Sequence[Row]) -> list[Json]:
    placed: list[Json] = []
    y = 0
    for row in rows:
        head = {"type": "row", "title": row.title, "collapsed": False, "panels": []}
        placed.append({"id": len(placed) + 1, **head, "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y}})
        x, y, line = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, line = 0, y + line, 0
            height = HEIGHTS[panel.kind]
            place = {"h": height, "w": panel.width, "x": x, "y": y}
            placed.append({"id": len(placed) + 1, **_panel(panel), "gridPos": place})
            x, line = x + panel.width, max(line, height)
        y += line
    return placed


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "targets": [_target(panel, number, query) for number, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel.kind),
    }


def _target(panel: Panel, number: int, query: Query) -> Json:
    target: Json = {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": query.expr}
    if query.legend:
        target["legendFormat"] = query.legend
    if panel.kind in ("stat", "table"):
        target["instant"] = True
    else:
        target["range"] = True
    if panel.kind in ("heatmap", "table"):
        target["format"] = panel.kind
    return target


def _defaults(panel: Panel) -> Json:
    defaults: Json = {"unit": panel.unit}
    if panel.unit == "percentunit":
        defaults |= {"min": 0, "max": 1}
    elif panel.kind == "timeseries":
        defaults |= {"min": 0}
    if panel.limit is not None:
        good, bad = ("red", "green") if panel.below else ("green", "red")
        steps = [{"color": good, "value": None}, {"color": bad, "value": panel.limit}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.kind == "timeseries":
        defaults["custom"] = _lines(panel)
    return defaults


def _lines(panel: Panel) -> Json:
    lines: Json = {"lineWidth": 1, "fillOpacity": 40 if panel.stacked else 8, "showPoints": "never"}
    if panel.stacked:
        lines["stacking"] = {"mode": "normal", "group": "A"}
    if panel.limit is not None:
        lines["thresholdsStyle"] = {"mode": "dashed"}
    return lines


def _options(kind: Kind) -> Json:
    if kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if kind == "stat":
        shown = {"values": False, "calcs": ["lastNotNull"], "fields": ""}
        return {"reduceOptions": shown, "colorMode": "value", "graphMode": "none", "textMode": "auto"}
    if kind == "heatmap":
        return {"calculate": False, "color": {"mode": "scheme", "scheme": "Oranges", "steps": 32}}
    return {"showHeader": True}


def _source() -> Json:
    return {"type": "datasource", "name": "datasource", "label": "Source", "query": "prometheus"}


def _choice(label: str, of_metric: str) -> Json:
    query = f"label_values({of_metric}, {label})"
    return {
        "type": "query",
        "name": label,
        "label": label.capitalize(),
        "datasource": SOURCE,
        "query": {"query": query, "refId": label},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _siblings() -> Json:
    return {
        "type": "dashboards",
        "title": "twigserve",
        "tags": ["twigserve"],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
        "icon": "external link",
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }
