"""One drill's own service: servers, gateways, workers, each a process that the drill can break.

Invariant: what was started is gone afterwards, whatever happened; nothing outside the folder is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from loadtest.drills.clients import Client
from loadtest.drills.servers import Server
from service.broker.redis_gateway import RedisGatewayBroker
from service.ports import free_port
from service.settings import RedisSettings

READY_S = 300.0  # processes that start on a busy machine
PATIENCE_S = 400.0  # of a client on one
LEASE_S = 3.0
PACE = {
    "TWIGSERVE_REDIS_LEASE_S": str(LEASE_S),
    "TWIGSERVE_REDIS_BACKOFF_MAX_S": "0.5",
    "TWIGSERVE_WORKER_POLL_S": "0.2",
    "TWIGSERVE_WORKER_HEARTBEAT_S": "0.2",
    "TWIGSERVE_WORKER_METRICS_PORT": "0",
    "TWIGSERVE_LOG_LEVEL": "warning",
    "OMP_WAIT_POLICY": "passive",
}


class Process:
    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self._command = list(command)
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and self.alive():
            self._process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait(20)

    def wait(self, timeout_s: float) -> int | None:
        return None if self._process is None else self._process.wait(timeout_s)

    def tail(self, lines: int = 15) -> str:
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


class Stage:
    """redis: what gateways and workers are told; `broker` looks into the queue beside them."""

    def __init__(self, folder: Path, url: str, **settings: Any) -> None:
        self.folder = folder
        self.redis = RedisSettings(url=SecretStr(url), lease_s=LEASE_S, **settings)
        self.broker = RedisGatewayBroker(self.redis)
        self.gateways: list[Process] = []
        self.gateway_urls: list[str] = []
        self.workers: dict[str, Process] = {}
        self.servers: list[Server] = []
        self._clients: list[Client] = []
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TWIGSERVE_")
        } | PACE
        self._environment |= {
            f"TWIGSERVE_REDIS_{name.upper()}": str(value) for name, value in settings.items()
        } | {"TWIGSERVE_REDIS_URL": url}

    def add_gateway(self, *faults: str, **settings: Any) -> Process:
        port = free_port("127.0.0.1")
        named = {f"TWIGSERVE_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
        gateway = self._process(
            f"gateway{len(self.gateways)}", (*faults, "gateway", "--port", str(port)), named
        )
        self.gateways.append(gateway)
        self.gateway_urls.append(f"http://127.0.0.1:{port}")
        return gateway

    def add_worker(
        self, *faults: str, stub: bool = True, options: Sequence[str] = (), **settings: Any
    ) -> Process:
        name = f"w{len(self.workers)}"
        named = {f"TWIGSERVE_WORKER_{key.upper()}": str(value) for key, value in settings.items()}
        named["TWIGSERVE_WORKER_WORKER_ID"] = name
        stubbed = ("--stub",) if stub else ()
        worker = self._process(name, (*stubbed, *faults, "worker", *options), named)
        self.workers[name] = worker
        return worker

    def _process(self, name: str, arguments: Sequence[str], named: dict[str, str]) -> Process:
        command = (sys.executable, "-m", "loadtest.drills.faulty", *arguments)
        process = Process(name, command, self._environment | named, self.folder / f"{name}.log")
        process.start()
        return process

    def client(self, timeout_s: float = PATIENCE_S) -> Client:
        client = Client(self.gateway_urls, timeout_s)
        self._clients.append(client)
        return client

    async def ready(self, workers: int | None = None) -> None:
        """Every gateway sees that many workers (all that are alive, unless said)."""
        count = sum(worker.alive() for worker in self.workers.values()) if workers is None else workers
        async with asyncio.timeout(READY_S), httpx.AsyncClient(trust_env=False, timeout=60) as http:
            for gateway, url in zip(self.gateways, self.gateway_urls, strict=True):
                while gateway.alive() and not await _sees(http, url, count):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    async def busy(self, name: str) -> None:
        """Returns once that worker has jobs."""
        async with asyncio.timeout(READY_S):
            while not any(  # noqa: ASYNC110
                info.worker_id == name and info.free_slots < info.max_slots
                for info in await self.broker.workers()
            ):
                await asyncio.sleep(0.02)

    async def anyone_busy(self) -> str:
        """The first worker seen with jobs; which one it is, is the queue's to say."""
        async with asyncio.timeout(READY_S):
            while True:
                for info in await self.broker.workers():
                    if info.free_slots < info.max_slots:
                        return info.worker_id
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await self.broker.close()
        processes = [*self.gateways, *self.workers.values()]
        for process in processes:
            process.send(signal.SIGKILL)  # also one that is stopped
        for process in processes:
            process.wait(20)
        for server in self.servers:
            server.kill()

    def tails(self) -> str:
        processes = [*self.gateways, *self.workers.values()]
        return "\n".join(f"--- {process.name}\n{process.tail()}" for process in processes)


async def _sees(http: httpx.AsyncClient, url: str, workers: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        response = await http.get(url + "/readyz")
        return response.status_code == 200 and response.json()["workers"] >= workers
    return False


async def until(true: Any, timeout_s: float = PATIENCE_S) -> float:
    """Seconds until the (awaitable) condition holds; for what nothing announces."""
    began = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while not await true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return time.monotonic() - began


@contextlib.asynccontextmanager
async def folder_and_stage() -> AsyncIterator[tuple[Path, list[Stage]]]:
    """The stages that a drill puts into the list are closed, then the folder goes."""
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    stages: list[Stage] = []
    try:
        yield folder, stages
    finally:
        for stage in stages:
            await stage.close()
        shutil.rmtree(folder, ignore_errors=True)
