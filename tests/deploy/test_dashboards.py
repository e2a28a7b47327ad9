"""The dashboards as Grafana would read them, and that what is committed is what the source gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard

from k8s.monitoring.__main__ import DASHBOARDS, generated
from k8s.monitoring.grafana import COLUMNS, Dashboard
from tests.deploy.cluster import render
from tests.deploy.dockerfile import ROOT

every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)


def test_the_committed_files_are_what_the_source_gives() -> None:
    """If this fails: `python -m k8s.monitoring`."""
    assert {path.name: path.read_text() for path in generated()} == {
        path.name: text for path, text in generated().items()
    }


def lost(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Where what came back says less, or something else."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from lost(value, kept.get(key), f"{path}.{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{path}[{number}]")
    elif given != kept:
        yield f"{path}: {given!r} came back as {kept!r}"


@every_dashboard
def test_grafanas_own_types_keep_every_field(dashboard: Dashboard) -> None:
    """A misspelt field or one in the wrong place does not come back from Grafana's model of its schema."""
    register_default_plugins()
    given = dashboard.to_json()
    kept = json.loads(JSONEncoder().encode(GrafanaDashboard.from_json(given)))
    assert list(lost(given, kept)) == []


def test_the_round_trip_sees_a_misspelt_field() -> None:
    register_default_plugins()
    given = DASHBOARDS[0].to_json()
    given["panels"][1]["fieldConfig"]["defaults"]["unti"] = "s"
    kept = json.loads(JSONEncoder().encode(GrafanaDashboard.from_json(given)))
    assert len(list(lost(given, kept))) == 1


@every_dashboard
def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: Dashboard) -> None:
    panels = dashboard.to_json()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        assert place["x"] + place["w"] <= COLUMNS
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        taken |= cells


@every_dashboard
def test_every_panel_says_what_it_shows(dashboard: Dashboard) -> None:
    titles = [panel.title for row in dashboard.rows for panel in row.panels]
    assert len(set(titles)) == len(titles)
    assert all(panel.text.endswith(".") for panel in dashboard.panels())
    assert all(
        query.legend for panel in dashboard.panels() if len(panel.queries) > 1 for query in panel.queries
    )


def test_uids_are_unique_and_fit_grafanas_limit() -> None:
    uids = [one.uid for one in DASHBOARDS]
    assert len(set(uids)) == len(uids)
    assert all(len(uid) <= 40 for uid in uids)


@pytest.mark.parametrize("overlay", ["overlays/monitoring", "overlays/gpu-autoscaled"])
def test_the_cluster_gets_every_dashboard(overlay: str) -> None:
    maps = [
        one for one in render(overlay).all("ConfigMap") if one["metadata"]["labels"].get("grafana_dashboard")
    ]
    shipped = {name: text for one in maps for name, text in one["data"].items()}
    assert shipped == {
        path.name: text for path, text in generated().items() if path.parent == ROOT / "k8s/dashboards"
    }
