"""The topology of compose.yaml as processes here, with its own nginx.conf, prometheus.yml and variables.

Workers run the stub engine: what is tried here is the way to them. Ports are free ones, so the names of the
compose network are replaced by addresses; all else of the files stays as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from service.settings import RedisSettings
from tests.deploy.dockerfile import ROOT

DOCKER = ROOT / "docker"
SERVICES: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
GATEWAYS, WORKERS = ("gateway-1", "gateway-2"), ("worker-1", "worker-2")
SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
NGINX, PROMETHEUS = (shutil.which(name, path=SBIN) for name in ("nginx", "prometheus"))
PATIENCE_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_true(true: Callable[[], bool], what: str) -> None:
    """For what another process does and nothing announces."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def nginx_config(folder: Path, port: int, gateways: dict[str, int]) -> Path:
    """gateways: name in the compose file -> port here."""
    text = (DOCKER / "nginx.conf").read_text()
    text = text.replace("/tmp/", f"{folder}/").replace("listen 8080", f"listen 127.0.0.1:{port}")
    for name, gateway in gateways.items():
        text = text.replace(f"{name}:8000", f"127.0.0.1:{gateway}")
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


def nginx_command(config: Path) -> list[str]:
    """One process: the test's user may not be able to hand its folder to another."""
    return [str(NGINX), "-c", str(config), "-g", "daemon off; master_process off;"]


def prometheus_config(folder: Path, ports: dict[str, int]) -> Path:
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "200ms")
    config["rule_files"] = [str(ROOT / "k8s/alerts/rules.yml")]
    for job in config["scrape_configs"]:
        names = [name for one in job.pop("dns_sd_configs") for name in one["names"] if name in ports]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[name]}" for name in names]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


class Topology:
    """As a context manager: everything up and ready. `url` is the load balancer's."""

    def __init__(
        self, folder: Path, redis: RedisSettings, gateway_variables: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._redis = redis
        self._gateway_variables = gateway_variables or {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = {name: free_port() for name in (*GATEWAYS, *WORKERS, "nginx", "prometheus")}
        self.url = f"http://127.0.0.1:{self.ports['nginx']}"
        self.prometheus_url = f"http://127.0.0.1:{self.ports['prometheus']}"

    def __enter__(self) -> Topology:
        try:
            for name in (*WORKERS, *GATEWAYS):
                self.start(name)
            config = nginx_config(
                self._folder, self.ports["nginx"], {name: self.ports[name] for name in GATEWAYS}
            )
            self._spawn("nginx", nginx_command(config), {})
            if PROMETHEUS is not None:
                self._spawn("prometheus", self._prometheus(), {})
            for name in GATEWAYS:
                self.await_gateway(name)
            await_true(lambda: answers(f"{self.url}/readyz"), "the load balancer")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str) -> None:
        """A gateway or worker, with the variables that compose.yaml gives it."""
        port = str(self.ports[name])
        variables = SERVICES[name]["environment"] | self._queue()
        if name in GATEWAYS:
            command = ["-m", "service.cli", "gateway", "--port", port]
            variables |= self._gateway_variables
        else:
            command = ["-m", "tests.service.stub_worker", "--step-s=0.02", "--metrics-port", port]
        self._spawn(name, [sys.executable, *command], variables)

    def kill(self, name: str) -> None:
        self._running[name].kill()
        self._running.pop(name).wait()

    def await_gateway(self, name: str) -> None:
        await_true(lambda: answers(f"http://127.0.0.1:{self.ports[name]}/readyz"), name)

    def query(self, promql: str) -> list[float]:
        found = httpx.get(f"{self.prometheus_url}/api/v1/query", params={"query": promql}, trust_env=False)
        return [float(series["value"][1]) for series in found.raise_for_status().json()["data"]["result"]]

    def stop(self) -> None:
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()
        self._running.clear()

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def _queue(self) -> dict[str, str]:
        return {
            "TWIGSERVE_REDIS_URL": self._redis.url.get_secret_value(),
            "TWIGSERVE_REDIS_SHARD": self._redis.shard,
            "OMP_NUM_THREADS": "1",
        }

    def _prometheus(self) -> Sequence[str]:
        config = prometheus_config(self._folder, self.ports)
        return (
            str(PROMETHEUS),
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}",
        )

    def _spawn(self, name: str, command: Sequence[str], variables: dict[str, str]) -> None:
        ours = {key: value for key, value in os.environ.items() if not re.match("TWIGSERVE_", key)}
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, cwd=ROOT, env=ours | variables, stdout=log, stderr=log
            )
