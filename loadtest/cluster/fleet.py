"""The service's processes on their hosts: Redis, three workers, two gateways, nginx before them.

With the configuration of docker/: only names become addresses, and leases are short to save minutes.
Invariant: what was started is stopped. Knows nothing of the load.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from loadtest.cluster.network import Network, NotPossibleError
from service.embedded_redis import find_server

ROOT = Path(__file__).resolve().parent.parent.parent
GATEWAYS, WORKERS = ("gateway-1", "gateway-2"), ("worker-1", "worker-2", "worker-3")
HOSTS = ("lb", *GATEWAYS, *WORKERS, "redis")
LEASE_S = 4.0
PATIENCE_S = 240.0
SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
WORKER_COMMANDS = {
    # Answers follow from the prompt alone, so that every token can be checked; a round takes 30 ms.
    "scripted": ("-m", "tests.service.stub_worker", "--step-s=0.03", "--metrics-port", "9100"),
    "embedded": (
        "-m",
        "service.cli",
        "worker",
        "--dtype",
        "float32",
        "--threads",
        "1",
        "--metrics-port",
        "9100",
    ),
}


class Fleet:
    """As a context manager: everything up and ready. `url` is the load balancer's."""

    def __init__(self, network: Network, folder: Path, engine: str) -> None:
        self._network = network
        self._folder = folder
        self._worker_command = WORKER_COMMANDS[engine]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._nginx = shutil.which("nginx", path=SBIN)
        if self._nginx is None:
            raise NotPossibleError("no nginx here (Debian: nginx-light)")
        self.url = f"http://{network.addresses['lb']}:8080"

    def __enter__(self) -> Fleet:
        try:
            self._start_redis()
            for name in (*WORKERS, *GATEWAYS):
                self.start(name)
            self._balance(GATEWAYS)
            command = [str(self._nginx), "-c", str(self._config), "-g", "daemon off; user root;"]
            self._spawn("lb", command)
            for name in GATEWAYS:
                self.await_gateway(name)
            self.await_workers(len(WORKERS))
            await_true(lambda: _answers(f"{self.url}/readyz"), "the load balancer")
        except BaseException:
            self._stop_all()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_all()

    def start(self, name: str) -> None:
        """A gateway or worker."""
        if name in GATEWAYS:
            command = ("-m", "service.cli", "gateway", "--host", "0.0.0.0", "--port", "8000")
        else:
            command = self._worker_command
        self._spawn(name, [sys.executable, *command], self._variables(name))

    def stop(self, name: str) -> None:
        """SIGTERM, and as long as its drain takes."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)

    def roll_gateway(self, name: str) -> None:
        """As a cluster does: first the balancer learns, then the process ends what it has begun."""
        self._balance([other for other in GATEWAYS if other != name])
        self._reload()
        self.stop(name)
        self.start(name)
        self.await_gateway(name)
        self._balance(GATEWAYS)
        self._reload()

    def roll_worker(self, name: str) -> None:
        self.stop(name)
        self.start(name)
        self.await_workers(len(WORKERS))

    def await_gateway(self, name: str) -> None:
        await_true(lambda: _answers(f"http://{self._network.addresses[name]}:8000/readyz"), name)

    def await_workers(self, count: int) -> None:
        url = f"http://{self._network.addresses[GATEWAYS[0]]}:8000/readyz"
        await_true(lambda: _workers(url) == count, f"{count} workers")

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")

    @property
    def _config(self) -> Path:
        return self._folder / "nginx.conf"

    def _balance(self, gateways: Sequence[str]) -> None:
        """docker/nginx.conf before these."""
        text = (ROOT / "docker/nginx.conf").read_text().replace("/tmp/", f"{self._folder}/")
        text = text.replace("access_log /dev/stdout", "access_log off")
        for name in GATEWAYS:
            here = f"server {self._network.addresses[name]}:8000"
            text = re.sub(rf"server {name}:8000\b", here if name in gateways else f"{here} down", text)
        self._config.write_text(text)

    def _reload(self) -> None:
        self._processes["lb"].send_signal(signal.SIGHUP)

    def _start_redis(self) -> None:
        options = {"bind": "0.0.0.0", "protected-mode": "no", "save": "", "appendonly": "yes"}
        options |= {"dir": str(self._folder), "maxmemory-policy": "noeviction"}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._spawn("redis", [find_server(), *words])

    def _variables(self, name: str) -> dict[str, str]:
        common = {
            "TWIGSERVE_REDIS_URL": f"redis://{self._network.addresses['redis']}:6379/0",
            "TWIGSERVE_REDIS_LEASE_S": str(LEASE_S),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
        }
        if name in GATEWAYS:
            return common | {
                "TWIGSERVE_GATEWAY_SHUTDOWN_S": "60",
                "TWIGSERVE_GATEWAY_ALLOW_ANONYMOUS": "true",
            }
        return common | {"TWIGSERVE_WORKER_DRAIN_S": "60", "TWIGSERVE_WORKER_WORKER_ID": name}

    def _spawn(self, host: str, command: Sequence[str], variables: dict[str, str] | None = None) -> None:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("TWIGSERVE_")}
        with (self._folder / f"{host}.log").open("ab") as log:
            self._processes[host] = subprocess.Popen(
                [*self._network.on(host), *command],
                cwd=ROOT,
                env=ours | (variables or {}),
                stdout=log,
                stderr=log,
            )

    def _stop_all(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def await_true(true: Callable[[], bool], what: str) -> None:
    """For what another process does and nothing announces."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not there after {PATIENCE_S:g} s")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    return _workers(url) > 0


def _workers(url: str) -> int:
    """How many a gateway's /readyz counts."""
    try:
        answer = httpx.get(url, timeout=2, trust_env=False)
        return int(answer.json()["workers"]) if answer.status_code == 200 else 0
    except httpx.HTTPError:
        return 0
