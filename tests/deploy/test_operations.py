"""What the pages for operators name exists: metrics, commands, settings, keys, panels, files, anchors.

At three in the morning nobody should have to find out that a command was renamed.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from k8s.monitoring.__main__ import DASHBOARDS
from service.cli import app
from service.metrics import GatewayMetrics, WorkerMetrics
from service.protocol import Keys
from service.settings import GatewaySettings, RedisSettings, WorkerSettings, known_variables
from tests.deploy.cluster import K8S, OVERLAYS, render
from tests.deploy.dockerfile import ROOT
from tests.deploy.test_alerts import ALERTS, GROUPS, anchors

PAGES = (
    *sorted((ROOT / "docs/operations").glob("*.md")),
    ROOT / "docs/architecture.md",
    ROOT / "loadtest/README.md",
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
SUFFIXES = ("_total", "_bucket", "_sum", "_count")
RUNBOOK = ROOT / "docs/operations/runbook.md"


def exported() -> set[str]:
    registries = (GatewayMetrics().registry, WorkerMetrics(layers=2).registry)
    return {family.name for registry in registries for family in registry.collect()}


def stem(name: str) -> str:
    return next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)


@every_page
def test_metrics_and_recorded_series_exist(page: Path) -> None:
    text = page.read_text()
    # Not the stem of a pattern, as in twigvlm_request_*_time_seconds.
    named = {stem(name) for name in re.findall(r"twigvlm_\w+(?![\w*])", text)}
    assert named <= exported()
    recorded = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
    assert set(re.findall(r"twigserve:\w+:\w+", text)) <= recorded


def test_every_metric_is_shown_or_watched() -> None:
    queries = [query.expr for one in DASHBOARDS for panel in one.panels() for query in panel.queries]
    queries += [rule["expr"] for group in GROUPS for rule in group["rules"]]
    looked_at = {stem(name) for name in re.findall(r"twigvlm_\w+", "\n".join(queries))}
    # Named by a pattern: __name__=~"twigvlm_request_(success|failure)_total".
    looked_at |= {"twigvlm_request_success", "twigvlm_request_failure"}
    assert exported() - looked_at == set()


@every_page
def test_make_targets_and_modules_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert (
        set(re.findall(r"(?:^|[`\s])make ([a-z-]+)\b(?=[^`\n]*(?:`|$))", commands(page), re.MULTILINE))
        <= targets
    )
    modules = set(re.findall(r"python -m ([\w.]+)", page.read_text()))
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []


def commands(page: Path) -> str:
    """Blocks and inline code alone: in a sentence `make` is a verb."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *(f"`{one}`" for one in re.findall(r"`([^`\n]+)`", text))])


@every_page
def test_commands_of_ours_take_the_options_they_are_given(page: Path) -> None:
    root = typer.main.get_command(app)
    for line in re.findall(r"(?<![\w/'\"-])(?<!-n )twigserve ((?:[a-z]+)(?: [^`\n|]*)?)", commands(page)):
        words = line.split("#")[0].split()
        command: Any = root
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command is not root, line
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        asked = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert asked <= known, line


@every_page
def test_settings_exist(page: Path) -> None:
    text = page.read_text()
    variables = set(re.findall(r"\bTWIGSERVE_[A-Z_]+[A-Z]\b", text)) - {
        "TWIGSERVE_GATEWAY",
        "TWIGSERVE_WORKER",
    }
    assert variables <= known_variables()
    fields = {name for one in (RedisSettings, GatewaySettings, WorkerSettings) for name in one.model_fields}
    named = set(
        re.findall(r"`((?:max_|min_)\w+|\w+_(?:ttl_s|timeout_s)|lease_s|stall_s|drain_s|shutdown_s)`", text)
    )
    # Fields of a request, not settings.
    assert named - {"max_tokens"} <= fields
    # limits.md leaves the prefix away; what is no setting is a variable of a file.
    shouted = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)(?:=[^`]*)?`", text)) - variables
    files = ("Dockerfile", "Makefile", "docker/compose.yaml", "service/protocol/message.py")
    others = "\n".join((ROOT / name).read_text() for name in files)
    assert [name for name in sorted(shouted) if name.lower() not in fields and name not in others] == []


@every_page
def test_redis_keys_exist(page: Path) -> None:
    keys = Keys("q")
    known = {
        value
        for name in dir(keys)
        if isinstance(value := getattr(keys, name), str) and value.startswith("{q}")
    }
    made = {"{q}:worker:", "{q}:blob:", "{q}:events:", "{q}:job:"}
    named = {name.rstrip("*") for name in re.findall(r"\{q\}:[a-z]+(?::\*?)?", page.read_text())}
    assert named <= known | made


@every_page
def test_manifests_named_exist(page: Path) -> None:
    text = page.read_text()
    paths = set(re.findall(r"\b((?:k8s|docker|docs|service|loadtest|model)/[\w./-]*\w)", text))
    # kubectl's service/NAME is no path.
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert {path for path in missing if not path.startswith("service/twigserve-")} == set()
    objects = {
        f"{one['kind'].lower()}/{one['metadata']['name']}"
        for overlay in OVERLAYS
        for one in render(overlay).objects
    }
    assert set(re.findall(r"\b(?:deployment|service|statefulset)/twigserve-\w+", text)) <= objects


@every_page
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(str(path.relative_to(ROOT))), target


def test_the_runbook_has_a_section_for_each_alert_and_for_no_other() -> None:
    assert set(re.findall(r"^### (Twigserve\w+)$", RUNBOOK.read_text(), re.MULTILINE)) == ALERTS.keys()


def test_the_runbook_names_panels_and_rows_that_exist() -> None:
    titles = {panel.title for one in DASHBOARDS for panel in one.panels()}
    titles |= {row.title for one in DASHBOARDS for row in one.rows}
    named = set(re.findall(r"(?<!\*)\*([A-Z][\w ]+)\*(?!\*)", RUNBOOK.read_text()))
    assert named
    assert named <= titles


def test_the_runbook_explains_error_codes_that_the_service_gives() -> None:
    table = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", RUNBOOK.read_text(), re.MULTILINE)
    codes = {code for row in table for code in re.findall(r"`(\w+)`", row)}
    source = "\n".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    source += "\n".join(path.read_text() for path in (ROOT / "service").rglob("*.lua"))
    assert codes
    assert {code for code in codes if f'"{code}"' not in source} == set()


def test_the_overlays_of_the_deployment_page_are_all_there_are() -> None:
    table = re.findall(
        r"^\| `([a-z-]+)` \|", (ROOT / "docs/operations/deployment.md").read_text(), re.MULTILINE
    )
    assert {path.name for path in (K8S / "overlays").iterdir()} <= set(table)
