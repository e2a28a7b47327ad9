"""A whole service of processes for one measurement: Redis, one gateway on one core, stub workers.

On Linux the gateway has core 0 and everything else the rest; its decoders are with the one or the other
(`decoders_on`).
Invariant: what was started is stopped.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis as redis_client

from service.embedded_redis import EmbeddedRedis
from service.ports import free_port

READY_S = 300.0
GATEWAY_CORES = {0}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Stage:
    redis: redis_client.Redis
    port: int
    gateway_pid: int
    redis_pid: int
    environment: dict[str, str]
    workers_pid: int = 0

    def commands(self) -> int:
        info = self.redis.info("stats")
        return int(info["total_commands_processed"])

    def cpu_s(self) -> dict[str, float]:
        """Processor time of each part so far."""
        return {
            "gateway": cpu_s(self.gateway_pid),
            "decoders": sum(cpu_s(pid, of_the_dead=True) for pid in descendants(self.gateway_pid)),
            "redis": cpu_s(self.redis_pid),
            "workers": cpu_s(self.workers_pid),
            "load": cpu_s(os.getpid()),
        }

    def decoders_on(self, cores: set[int]) -> None:
        """Those that run, and the server that forks the later ones."""
        for pid in descendants(self.gateway_pid):
            pin(pid, cores)

    def gateway_rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.gateway_pid}/statm").read_text().split()[1])
        return round(pages * PAGE_BYTES / 1e6, 1)

    @contextlib.contextmanager
    def workers(self, count: int) -> Iterator[None]:
        command = [sys.executable, "-m", "loadtest.stub_workers", str(count)]
        with running(command, self.environment, elsewhere()) as process:
            self.workers_pid = process.pid
            await_ready(f"http://127.0.0.1:{self.port}", count)
            yield


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    with EmbeddedRedis() as server:
        port = free_port("127.0.0.1")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TWIGSERVE_")}
        environment |= {
            "TWIGSERVE_REDIS_URL": server.url,
            "TWIGSERVE_REDIS_SHARD": f"load{uuid.uuid4().hex[:8]}",
            "TWIGSERVE_LOG_LEVEL": "warning",
        }
        gateway = [sys.executable, "-m", "service.cli", "gateway", "--port", str(port)]
        pin(os.getpid(), elsewhere())
        pin(server.pid, elsewhere())
        with running(gateway, environment, GATEWAY_CORES) as process:
            yield Stage(redis_client.Redis.from_url(server.url), port, process.pid, server.pid, environment)


@contextlib.contextmanager
def running(
    command: list[str], environment: dict[str, str], cores: set[int]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment)
    pin(process.pid, cores)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def elsewhere() -> set[int]:
    return set(range(os.cpu_count() or 1)) - GATEWAY_CORES or GATEWAY_CORES


def pin(pid: int, cores: set[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, cores)


def await_ready(url: str, workers: int) -> None:
    until = time.monotonic() + READY_S
    with httpx.Client(trust_env=False, timeout=60) as client:
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                response = client.get(url + "/readyz")
                if response.status_code == 200 and response.json()["workers"] >= workers:
                    return
            time.sleep(0.1)
    raise TimeoutError(f"{workers} workers were not ready within {READY_S:g} s")


def cpu_s(pid: int, *, of_the_dead: bool = False) -> float:
    """of_the_dead: with that of its children that have ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11 : 15 if of_the_dead else 13])) / TICKS_PER_S
    return 0.0


def descendants(pid: int) -> list[int]:
    """Of every thread: a child belongs to the one that started it."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found
