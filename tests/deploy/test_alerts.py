"""The rules: accepted by promtool, each alert tried firing and quiet, each with a place in the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.deploy.cluster import render
from tests.deploy.dockerfile import ROOT

RULES = ROOT / "k8s/alerts/rules.yml"
CASES = ROOT / "tests/deploy/alerts.yaml"
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}


def promtool(*arguments: str) -> None:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on this machine")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "--lint-fatal", str(RULES))


def test_each_alert_fires_when_it_should_and_then_only() -> None:
    promtool("test", "rules", str(CASES))


def test_every_alert_is_tried_firing_and_quiet() -> None:
    tried: dict[str, set[bool]] = {name: set() for name in ALERTS}
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for one in case["alert_rule_test"]:
            tried[one["alertname"]].add(bool(one.get("exp_alerts")))
    assert {name for name, ways in tried.items() if ways != {True, False}} == set()


def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_every_alert_tells_what_happened_and_where_to_read_on(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    notes = rule["annotations"]
    assert {"summary", "description", "runbook_url"} == notes.keys()
    page, _, anchor = notes["runbook_url"].partition("#")
    assert anchor == name.lower()
    assert anchor in anchors(page)


@pytest.mark.parametrize("overlay", ["overlays/monitoring", "overlays/gpu-autoscaled"])
def test_the_cluster_gets_the_same_rules(overlay: str) -> None:
    (rule,) = render(overlay).all("PrometheusRule")
    assert rule["spec"]["groups"] == GROUPS
