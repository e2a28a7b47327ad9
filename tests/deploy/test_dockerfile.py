"""The images' promises that can be read off the Dockerfile; building them is `make image`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.settings import GatewaySettings, WorkerSettings, unknown_variables
from tests.deploy.dockerfile import ROOT, inherited, lineage, stages, variables

IMAGES = ("gateway", "worker-cpu", "worker-cuda")
WORKERS = IMAGES[1:]


@pytest.mark.parametrize("image", IMAGES)
def test_runs_as_a_numeric_user_that_is_not_root(image: str) -> None:
    user = inherited(image, "USER")[0]
    assert all(part.isdigit() and int(part) > 0 for part in user.split(":"))
    assert not [stage.name for stage in lineage(image) if stage.all("RUN")], "run stages only copy"


@pytest.mark.parametrize("image", IMAGES)
def test_variables_are_settings(image: str) -> None:
    assert unknown_variables(variables(image)) == []
    assert variables(image)["HOME"] == "/tmp"


@pytest.mark.parametrize("image", IMAGES)
def test_health_and_start_are_commands_of_ours(image: str) -> None:
    health = json.loads(inherited(image, "HEALTHCHECK")[0].partition("CMD ")[2])
    entry, start = (json.loads(inherited(image, name)[0]) for name in ("ENTRYPOINT", "CMD"))
    assert health[0] == entry[0] == "twigserve"
    for command in (health[1:], [*entry[1:], *start]):
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0


def test_ports_are_those_of_the_settings() -> None:
    exposed = {image: [int(port) for port in inherited(image, "EXPOSE")] for image in IMAGES}
    assert exposed["gateway"] == [GatewaySettings.model_fields["port"].default]
    for image in WORKERS:
        assert exposed[image] == [WorkerSettings.model_fields["metrics_port"].default]


def test_the_gateway_gets_neither_the_model_nor_what_it_needs() -> None:
    runs = " ".join(inherited("build-gateway", "RUN"))
    assert "model" not in " ".join(inherited("build-gateway", "COPY")).split()
    assert "-r base.txt" in runs
    assert "-r worker.txt" not in runs


def test_only_the_cpu_image_is_held_to_the_pinned_torch() -> None:
    pinned = {
        image: "-c constraints.txt" in " ".join(inherited(f"build-{image}", "RUN")) for image in WORKERS
    }
    assert pinned == {"worker-cpu": True, "worker-cuda": False}


def test_the_cpu_worker_carries_kernels_and_no_compiler() -> None:
    runs = " ".join(inherited("build-worker-cpu", "RUN"))
    assert runs.index("g++") < runs.index("-m model.native.build")
    assert not [stage.name for stage in lineage("worker-cpu") if "g++" in " ".join(stage.all("RUN"))]


def test_every_image_can_be_pinned_and_has_labels() -> None:
    known = stages()
    for image in IMAGES:
        assert lineage(image)[-1].base == "${PYTHON_IMAGE}"
        labels = set(
            re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", " ".join(inherited(image, "LABEL")))
        )
        assert {"title", "description", "licenses", "version", "revision", "base.name"} <= labels
        copies = inherited(image, "COPY")
        assert copies == [f"--from=build-{image} /opt/twigserve /opt/twigserve"]
        assert f"build-{image}" in known


def test_what_is_copied_exists_and_enters_the_build() -> None:
    entering = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {
        source
        for stage in stages().values()
        for rest in stage.all("COPY")
        if not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == entering
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []


def test_needs_no_grammar_that_older_buildahs_lack() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "<<" not in text
    assert "--link" not in text


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{Path('/usr/bin')}")
    if hadolint is None:
        pytest.skip("no hadolint on this machine")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
