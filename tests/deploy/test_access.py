"""Who may ask: wherever a gateway can be reached from outside, it asks for an API key."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from service.settings import GatewaySettings
from tests.deploy.cluster import K8S, Cluster, environment, pod
from tests.deploy.dockerfile import inherited
from tests.deploy.test_compose import GATEWAYS, SERVICES

KEYS_FILE, ANONYMOUS = "TWIGSERVE_GATEWAY_KEYS_FILE", "TWIGSERVE_GATEWAY_ALLOW_ANONYMOUS"


def test_the_image_listens_to_the_world_and_starts_with_keys_or_an_explicit_opt_out_alone() -> None:
    assert "TWIGSERVE_GATEWAY_HOST=0.0.0.0" in str(inherited("gateway", "ENV"))
    with pytest.raises(ValueError, match="allow_anonymous"):
        GatewaySettings(host="0.0.0.0")
    for allowed in ({"host": "0.0.0.0", "allow_anonymous": True}, {"host": "::1"}, {"host": "localhost"}):
        GatewaySettings(**allowed)


def test_only_the_demo_without_an_ingress_asks_for_no_key(cluster: Cluster) -> None:
    gateway = cluster.get("Deployment", "twigserve-gateway")
    assert gateway is not None
    variables = environment(cluster, gateway)
    assert (ANONYMOUS in variables) != (KEYS_FILE in variables)
    assert (ANONYMOUS in variables) == (cluster.overlay == "overlays/cpu-demo")
    assert bool(cluster.all("Ingress")) == (KEYS_FILE in variables)


def test_the_keys_file_is_where_its_secret_is_mounted(cluster: Cluster) -> None:
    gateway = cluster.get("Deployment", "twigserve-gateway")
    assert gateway is not None
    path = environment(cluster, gateway).get(KEYS_FILE)
    (main,) = pod(gateway)["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in main["volumeMounts"]}
    secrets = {one["name"]: one["secret"] for one in pod(gateway)["volumes"] if "secret" in one}
    if path is None:
        assert not secrets
        return
    file = PurePosixPath(path)
    secret = secrets[mounts[str(file.parent)]]
    assert secret["secretName"] == "twigserve-api-keys"
    assert f"  {file.name}:" in (K8S / "base/secrets.example.yaml").read_text()


def test_compose_opts_out_behind_a_loopback_port() -> None:
    for name in GATEWAYS:
        assert SERVICES[name]["environment"][ANONYMOUS] == "true"
        assert "ports" not in SERVICES[name]
