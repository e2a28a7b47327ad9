"""compose.yaml and what it mounts: topology, hardening, and that every name in one exists in the other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import GatewaySettings, WorkerSettings, unknown_variables
from tests.deploy.dockerfile import ROOT, inherited, stages

DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if "build" in one}
GATEWAYS, CPU_WORKERS = {"gateway-1", "gateway-2"}, {"worker-1", "worker-2"}


def running(profile: str) -> set[str]:
    return {name for name, one in SERVICES.items() if profile in one.get("profiles", [profile])}


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def config(folder: Path, text: str, profile: str) -> dict[str, Any]:
    """What docker-compose makes of it, checked against its schema; no daemon is asked."""
    tool = shutil.which("docker-compose")
    if tool is None:
        pytest.skip("no docker-compose on this machine")
    copy = folder / "compose.yaml"
    # Of 2021 on; version 1, which Debian has, does not know it.
    copy.write_text(text.replace("name: twigserve\n", "", 1))
    done = subprocess.run(
        [tool, "--project-directory", str(DOCKER), "-f", str(copy), "--profile", profile, "config"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0:
        raise ValueError(done.stderr)
    resolved: dict[str, Any] = yaml.safe_load(done.stdout)
    return resolved


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_docker_compose_resolves_the_file(tmp_path: Path, profile: str) -> None:
    resolved = config(tmp_path, (DOCKER / "compose.yaml").read_text(), profile)
    assert resolved["services"].keys() == SERVICES.keys()
    assert all(one["read_only"] for one in resolved["services"].values())
    (models,) = resolved["services"]["worker-gpu"]["volumes"]
    assert models.endswith("docker/models:/models:ro")


def test_docker_compose_refuses_a_misspelt_option(tmp_path: Path) -> None:
    text = (DOCKER / "compose.yaml").read_text().replace("stop_grace_period", "stop_grace_time")
    with pytest.raises(ValueError, match="stop_grace_time"):
        config(tmp_path, text, "cpu")


def test_two_of_each_run_by_default() -> None:
    assert (DOCKER / ".env").read_text().splitlines()[-1] == "COMPOSE_PROFILES=cpu"
    others = {"nginx", "redis", "prometheus", "grafana"}
    assert running("cpu") == GATEWAYS | CPU_WORKERS | others


def test_workers_of_two_models_never_share_the_queue() -> None:
    """A gateway prepares pictures for the card of one worker: another model's would see wrong ones."""
    assert running("gpu") & {name for name in SERVICES if name.startswith("worker")} == {"worker-gpu"}


def test_every_container_is_confined() -> None:
    for name, one in SERVICES.items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in one, name


def test_ports_are_published_on_loopback_alone() -> None:
    published = [port for one in SERVICES.values() for port in one.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_networks_volumes_and_dependencies_exist() -> None:
    for one in SERVICES.values():
        assert set(one["networks"]) <= COMPOSE["networks"].keys()
        assert set(one.get("depends_on", ())) <= SERVICES.keys()
        named = {volume.split(":")[0] for volume in one.get("volumes", ())}
        named = {volume for volume in named if not volume.startswith((".", "$"))}
        assert named <= COMPOSE["volumes"].keys()


def test_what_is_waited_for_to_be_healthy_can_tell() -> None:
    for one in SERVICES.values():
        wanted = one.get("depends_on", {})
        for name in wanted if isinstance(wanted, dict) else ():
            target = SERVICES[name].get("build", {}).get("target")
            assert "healthcheck" in SERVICES[name] or inherited(target, "HEALTHCHECK"), name


def test_mounted_files_exist() -> None:
    mounts = [volume.split(":") for one in SERVICES.values() for volume in one.get("volumes", ())]
    sources = [DOCKER / mount[0] for mount in mounts if mount[0].startswith(".")]
    assert sources
    assert [str(source) for source in sources if not source.exists()] == []
    assert all(mount[-1] == "ro" for mount in mounts if mount[0].startswith((".", "$")))


def test_images_are_built_from_stages_of_the_dockerfile() -> None:
    for name, one in OURS.items():
        assert one["build"]["target"] in stages(), name
        assert (DOCKER / one["build"]["context"]).resolve() == ROOT
        assert one["image"].startswith(f"twigserve-{one['build']['target']}:"), name


@pytest.mark.parametrize("name", sorted(OURS))
def test_settings_are_known_and_valid(name: str) -> None:
    settings = GatewaySettings if name in GATEWAYS else WorkerSettings
    prefix = str(settings.model_config["env_prefix"])
    variables = OURS[name]["environment"]
    assert unknown_variables(variables) == []
    settings.model_validate(
        {
            key.removeprefix(prefix).lower(): value
            for key, value in variables.items()
            if key.startswith(prefix)
        }
    )


@pytest.mark.parametrize("name", sorted(OURS))
def test_containers_are_given_longer_than_they_take_to_drain(name: str) -> None:
    variable = "TWIGSERVE_GATEWAY_SHUTDOWN_S" if name in GATEWAYS else "TWIGSERVE_WORKER_DRAIN_S"
    assert seconds(OURS[name]["stop_grace_period"]) > float(OURS[name]["environment"][variable])


def test_redis_keeps_jobs_over_restarts_and_never_evicts() -> None:
    command = " ".join(SERVICES["redis"]["command"].split())
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert any(volume.endswith(":/data") for volume in SERVICES["redis"]["volumes"])
    assert COMPOSE["networks"]["back"]["internal"] is True
    assert SERVICES["redis"]["networks"] == ["back"]


def test_nginx_balances_over_the_gateways() -> None:
    servers = re.findall(r"^\s+server ([\w-]+):(\d+)", (DOCKER / "nginx.conf").read_text(), re.MULTILINE)
    assert {name for name, _ in servers} == GATEWAYS
    assert {int(port) for _, port in servers} == {GatewaySettings.model_fields["port"].default}


def test_prometheus_scrapes_every_process_of_ours() -> None:
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    found = {
        name: discovery["port"]
        for job in config["scrape_configs"]
        for discovery in job["dns_sd_configs"]
        for name in discovery["names"]
    }
    gateway, worker = (
        GatewaySettings.model_fields["port"].default,
        WorkerSettings.model_fields["metrics_port"].default,
    )
    assert found == {name: gateway if name in GATEWAYS else worker for name in OURS}


def test_promtool_accepts_the_prometheus_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on this machine")
    done = subprocess.run(
        [promtool, "check", "config", str(DOCKER / "prometheus.yml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_grafana_finds_its_source_and_its_dashboards() -> None:
    provisioning = DOCKER / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/twigserve.yaml").read_text())["providers"]
    host, port = re.fullmatch(r"http://([\w-]+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert host in SERVICES
    assert any(published.endswith(f":{port}") for published in SERVICES[host]["ports"])
    mounted = {Path(volume.split(":")[1]) for volume in SERVICES["grafana"]["volumes"]}
    assert {Path(provider["options"]["path"]), Path("/etc/grafana/provisioning")} <= mounted
